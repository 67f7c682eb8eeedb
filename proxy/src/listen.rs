//! The wire port: accepts, bounds and hands over.
//!
//! It reads nothing from a client and knows nothing of the protocol but the one error it may have to send. One task
//! per connection from the first byte on, so that a silent client delays nobody.

use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::gate::Gate;
use crate::session;

/// Connections that may wait in the kernel to be accepted.
const BACKLOG: u32 = 1024;

/// Pause after a failed accept, e.g. when file descriptors ran out: without it the loop spins.
const ACCEPT_PAUSE: Duration = Duration::from_millis(10);

/// Clients that vanished without a word are found after about two minutes.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);
const KEEPALIVE_PROBES: u32 = 4;

/// Binds `address`; port 0 lets the kernel choose.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // So that a restart need not wait for the old process's connections to time out.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Accepts until `stop` is cancelled, then closes the port and returns when the last session has ended. Dropping the
/// future stops accepting, but sessions are tasks of their own.
pub async fn serve(listener: TcpListener, gate: Arc<Gate>, stop: CancellationToken) {
    let sessions = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((socket, peer)) => admit(socket, peer, &gate, &sessions),
            Err(error) if belongs_to_one_connection(&error) => {}
            Err(error) => {
                gate.metrics.accept_failed();
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    sessions.close();
    sessions.wait().await;
}

fn admit(socket: TcpStream, peer: SocketAddr, gate: &Arc<Gate>, sessions: &TaskTracker) {
    let Ok(permit) = gate.clients.clone().try_acquire_owned() else {
        gate.metrics.connection_refused("clients_max");
        refuse(socket);
        return;
    };
    if let Err(error) = tune(&socket) {
        // The client is gone already.
        tracing::debug!(%peer, %error, "a connection ended before it began");
        return;
    }
    gate.metrics.connection_accepted();
    let gate = gate.clone();
    sessions.spawn(async move {
        let _open = Open(gate.clone());
        let _permit = permit;
        session::run(socket, peer, gate).await;
    });
}

/// Counts a connection as closed also when its task panics.
struct Open(Arc<Gate>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.metrics.connection_closed();
    }
}

fn tune(socket: &TcpStream) -> io::Result<()> {
    socket.set_nodelay(true)?;
    let keepalive =
        TcpKeepalive::new().with_time(KEEPALIVE_IDLE).with_interval(KEEPALIVE_INTERVAL).with_retries(KEEPALIVE_PROBES);
    SockRef::from(socket).set_tcp_keepalive(&keepalive)
}

/// `accept(2)` reports errors of the connection that it would have returned; they say nothing about the port.
fn belongs_to_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}

/// One write that cannot block (the send buffer of a new socket is empty), then closed. Nothing is read: answering a
/// startup packet would mean to hold what `clients_max` says not to hold.
fn refuse(socket: TcpStream) {
    if let Ok(mut socket) = socket.into_std() {
        let _ = socket.write_all(TOO_MANY_CLIENTS);
        let _ = socket.shutdown(std::net::Shutdown::Write);
    }
}

/// `ErrorResponse` FATAL 53300 with PostgreSQL's own words.
const TOO_MANY_CLIENTS: &[u8] = b"E\x00\x00\x00\x3bSFATAL\0VFATAL\0C53300\0Msorry, too many clients already\0\0";
