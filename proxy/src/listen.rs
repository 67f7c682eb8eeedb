//! The accept loop: accepts, bounds and hands over.
//!
//! It reads nothing from a client and knows nothing of the protocol but the one error it may have to send. One task
//! per connection from the first byte on, on one of the [workers](crate::workers), so that a silent client delays nobody.

use std::io::{self, Write as _};
use std::net::Shutdown;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use futures_util::future::join_all;
use portcullis_config::TcpConfig;
use portcullis_wire::{ErrorMessage, SqlState};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::door::{Arrival, Door, Socket, tune};
use crate::gate::Gate;
use crate::metrics::Metrics;
use crate::session;
use crate::workers::Workers;

/// Pause after a failed accept, e.g. when file descriptors ran out: without it the loop spins.
const ACCEPT_PAUSE: Duration = Duration::from_millis(10);

/// Accepts at every door until `stop` is cancelled, then closes them and returns when the last session has ended. Dropping
/// the future stops accepting, but sessions are tasks of their own.
pub async fn serve(doors: Vec<Door>, gate: Arc<Gate>, workers: Arc<Workers>, stop: CancellationToken) {
    let port = Port {
        clients: gate.clients.clone(),
        metrics: gate.metrics.clone(),
        workers,
        sessions: TaskTracker::new(),
        tcp: gate.config.listen.tcp,
    };
    let session = move |arrival| session::run(arrival, gate.clone());
    let accepting = doors.into_iter().map(|door| port.accept(door, &stop, session.clone()));
    join_all(accepting).await;
    port.sessions.close();
    port.sessions.wait().await;
}

/// The listener's own state, apart from what its sessions need.
struct Port {
    clients: Arc<Semaphore>,
    metrics: Arc<Metrics>,
    workers: Arc<Workers>,
    sessions: TaskTracker,
    tcp: TcpConfig,
}

impl Port {
    async fn accept<S>(
        &self,
        door: Door,
        stop: &CancellationToken,
        session: impl Fn(Arrival) -> S + Clone + Send + 'static,
    ) where
        S: Future<Output = ()> + Send,
    {
        loop {
            let accepted = tokio::select! {
                biased;
                () = stop.cancelled() => break,
                accepted = door.accept() => accepted,
            };
            match accepted {
                Ok(arrival) => self.admit(arrival, session.clone()),
                Err(error) if belongs_to_one_connection(&error) => {}
                Err(error) => {
                    self.metrics.accept_failed();
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn admit<S>(&self, arrival: Arrival, session: impl Fn(Arrival) -> S + Send + 'static)
    where
        S: Future<Output = ()> + Send,
    {
        let Ok(permit) = self.clients.clone().try_acquire_owned() else {
            self.metrics.connection_refused("clients_max");
            refuse(arrival.socket);
            return;
        };
        let peer = arrival.peer;
        let tuned = match &arrival.socket {
            Socket::Tcp(socket) => tune(socket, &self.tcp),
            Socket::Unix(_) => Ok(()),
        };
        let (Ok(leaving), Some(assigned)) = (tuned.and_then(|()| arrival.leave_thread()), self.workers.assign()) else {
            // The client is gone already.
            tracing::debug!(%peer, "a connection ended before it began");
            return;
        };
        let open = Open::new(self.metrics.clone(), permit);
        let handle = assigned.handle().clone();
        let serve = async move {
            let _here = (open, assigned);
            // Watched by the event loop of the thread that it is on now.
            if let Ok(arrival) = leaving.arrive() {
                session(arrival).await;
            }
        };
        self.sessions.spawn_on(serve, &handle);
    }
}

/// A connection's permit and its place in the count, given back together however its task ends.
struct Open {
    metrics: Arc<Metrics>,
    _permit: OwnedSemaphorePermit,
}

impl Open {
    fn new(metrics: Arc<Metrics>, permit: OwnedSemaphorePermit) -> Self {
        metrics.connection_accepted();
        Self { metrics, _permit: permit }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.metrics.connection_closed();
    }
}

/// `accept(2)` reports errors of the connection that it would have returned; they say nothing about the port.
fn belongs_to_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}

/// One write that cannot block (the send buffer of a new socket is empty), then closed. Nothing is read: answering a
/// startup packet would mean to hold what `clients_max` says not to hold.
fn refuse(socket: Socket) {
    let message = too_many_clients();
    match socket {
        Socket::Tcp(socket) => {
            if let Ok(mut socket) = socket.into_std() {
                let _ = socket.write_all(&message);
                let _ = socket.shutdown(Shutdown::Write);
            }
        }
        Socket::Unix(socket) => {
            if let Ok(mut socket) = socket.into_std() {
                let _ = socket.write_all(&message);
                let _ = socket.shutdown(Shutdown::Write);
            }
        }
    }
}

/// PostgreSQL's own words.
fn too_many_clients() -> BytesMut {
    let mut frame = BytesMut::new();
    ErrorMessage::fatal(SqlState::TOO_MANY_CONNECTIONS, "sorry, too many clients already").encode_error(&mut frame);
    frame
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::SocketAddr;

    use crate::door::bind;
    use crate::metrics::Observed;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpStream;

    /// A port whose sessions end when their client says something.
    async fn start(clients_max: usize) -> (SocketAddr, Arc<Metrics>, CancellationToken, tokio::task::JoinHandle<()>) {
        let listener = bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        let address = listener.local_addr().unwrap();
        let (metrics, stop) = (Arc::new(Metrics::new()), CancellationToken::new());
        let clients = Arc::new(Semaphore::new(clients_max));
        let workers = Arc::new(Workers::start(1, 1 << 20).unwrap());
        let sessions = TaskTracker::new();
        let port = Port { clients, metrics: metrics.clone(), workers, sessions, tcp: TcpConfig::default() };
        let stopped = stop.clone();
        let task = tokio::spawn(async move {
            port.accept(Door::Tls(listener), &stopped, |arrival| async move {
                let Socket::Tcp(mut socket) = arrival.socket else { panic!("not this door") };
                assert!(socket.nodelay().unwrap());
                let _ = socket.write_all(b"+").await;
                let _ = socket.read_u8().await;
            })
            .await;
            port.sessions.close();
            port.sessions.wait().await;
        });
        (address, metrics, stop, task)
    }

    /// A test that waits for what never comes fails instead of hanging.
    async fn within_patience(test: impl Future<Output = ()>) {
        tokio::time::timeout(Duration::from_secs(30), test).await.unwrap();
    }

    async fn connect(address: SocketAddr) -> (TcpStream, u8) {
        let mut socket = TcpStream::connect(address).await.unwrap();
        let first = socket.read_u8().await.unwrap();
        (socket, first)
    }

    #[tokio::test]
    async fn beyond_clients_max_a_client_hears_53300() {
        within_patience(beyond_clients_max()).await;
    }

    async fn beyond_clients_max() {
        let (address, metrics, ..) = start(2).await;
        let (one, _two) = (connect(address).await, connect(address).await);
        assert_eq!((one.1, metrics.connections_open()), (b'+', 2));

        let mut third = TcpStream::connect(address).await.unwrap();
        let mut heard = Vec::new();
        third.read_to_end(&mut heard).await.unwrap();
        assert_eq!(heard, b"E\x00\x00\x00\x3bSFATAL\0VFATAL\0C53300\0Msorry, too many clients already\0\0");
        let page = metrics.render(&Observed::default());
        assert!(page.contains("portcullis_client_connections_refused_total{reason=\"clients_max\"} 1\n"), "{page}");

        // One leaves: its permit is for the next, as soon as its task has ended.
        drop(one);
        loop {
            let (_, first) = connect(address).await;
            if first == b'+' {
                break;
            }
        }
    }

    #[tokio::test]
    async fn a_stop_closes_the_port_and_waits_for_sessions() {
        within_patience(a_stop()).await;
    }

    async fn a_stop() {
        let (address, metrics, stop, task) = start(10).await;
        let (mut client, _) = connect(address).await;
        stop.cancel();
        while TcpStream::connect(address).await.is_ok() {
            tokio::task::yield_now().await;
        }
        assert!(!task.is_finished(), "a session is left");
        assert_eq!(metrics.connections_open(), 1);
        client.write_all(b"x").await.unwrap();
        task.await.unwrap();
        assert_eq!(metrics.connections_open(), 0);
    }

    #[test]
    fn which_accept_errors_pause() {
        for (errno, one_connection) in
            [(103, true), (104, true), (111, true), (4, true), (24, false), (23, false), (12, false)]
        {
            assert_eq!(
                belongs_to_one_connection(&io::Error::from_raw_os_error(errno)),
                one_connection,
                "errno {errno}"
            );
        }
    }
}
