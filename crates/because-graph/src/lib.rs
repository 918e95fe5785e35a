//! Reads raw interaction files, builds the user-item graph, splits it, and answers who is near whom
