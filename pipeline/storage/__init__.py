"""Where bytes lie: folders, object stores, web servers, the local disk cache, and who may write."""
