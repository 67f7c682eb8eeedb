//! The one definition of what exists: schema, store, snapshot, follow.
