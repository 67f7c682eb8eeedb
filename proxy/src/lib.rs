//! The data plane and the admin port.

pub mod admin;
pub mod budget;
mod cancel;
pub mod check;
pub mod door;
pub mod gate;
mod handshakes;
pub mod harden;
pub mod listen;
mod long_texts;
pub mod metrics;
mod pool;
mod prepared;
mod reported;
mod scratch;
pub mod session;
mod sessions;
pub mod stop;
#[cfg(test)]
mod testing;
mod throttle;
pub mod tls;
mod upstream;
pub mod workers;
