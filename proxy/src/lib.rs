//! The data plane and the admin port.

pub mod admin;
pub mod gate;
pub mod harden;
pub mod listen;
pub mod metrics;
pub mod session;
pub mod stop;
#[cfg(test)]
mod testing;
pub mod tls;
