"""Where blobs and index entries are kept; every backend speaks `engines.store.protocol.Store`."""
