//! Buffers of a thread: where bytes are while somebody deals with them, so that a session at rest holds none.
//!
//! What is left over when a call ends (half a record, half a frame, what a socket did not take) is copied into the
//! session's own buffers. A caller sees only what it has put there itself in the same call; nothing is kept from one
//! call to the next.

use std::cell::RefCell;

/// What one read from a socket may bring, bytes.
pub const READ_BYTES: usize = 64 * 1024;
/// What one write to a socket may take, bytes: eight TLS records of the largest size, sealed.
pub const WRITE_BYTES: usize = 72 * 1024;

thread_local! {
    static READ: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    static WRITE: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Calls `with` with the thread's buffer for reading: [`READ_BYTES`] and `extra` bytes.
pub fn read<R>(extra: usize, with: impl FnOnce(&mut [u8]) -> R) -> R {
    READ.with(|buffer| in_buffer(buffer, READ_BYTES + extra, with))
}

/// Calls `with` with the thread's buffer for writing: [`WRITE_BYTES`].
pub fn write<R>(with: impl FnOnce(&mut [u8]) -> R) -> R {
    WRITE.with(|buffer| in_buffer(buffer, WRITE_BYTES, with))
}

fn in_buffer<R>(buffer: &RefCell<Vec<u8>>, size: usize, with: impl FnOnce(&mut [u8]) -> R) -> R {
    match buffer.try_borrow_mut() {
        Ok(mut buffer) => {
            if buffer.len() < size {
                buffer.resize(size, 0);
            }
            with(&mut buffer[..size])
        }
        // A call inside a call; slower, and right.
        Err(_) => with(&mut vec![0; size]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_inside_a_call_gets_a_buffer_of_its_own() {
        read(0, |outer| {
            outer[0] = 1;
            read(16, |inner| {
                assert_eq!(inner.len(), READ_BYTES + 16);
                inner[0] = 2;
            });
            assert_eq!(outer[0], 1);
        });
        write(|buffer| assert_eq!(buffer.len(), WRITE_BYTES));
    }
}
