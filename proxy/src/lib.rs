//! The data plane and the admin port.
