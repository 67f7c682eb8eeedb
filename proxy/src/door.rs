//! The ways in: the wire port with TLS and, only where the configuration opens them, a loopback port and a Unix socket in
//! the clear.
//!
//! It knows sockets, not the protocol. Who is behind a Unix socket (`SO_PEERCRED`) is never asked: a login proves itself
//! there as everywhere.

use std::fmt;
use std::io;
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use portcullis_config::TcpConfig;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::Interest;
use tokio::net::{TcpListener, TcpSocket, TcpStream, UnixListener, UnixStream};

/// Connections that may wait in the kernel to be accepted.
const BACKLOG: u32 = 1024;

/// An open way in.
pub enum Door {
    /// TCP; a session needs TLS.
    Tls(TcpListener),
    /// TCP on loopback, in the clear.
    Plain(TcpListener),
    /// A Unix socket, in the clear.
    Unix(UnixDoor),
}

/// What comes in by a door.
pub struct Arrival {
    /// The socket.
    pub socket: Socket,
    /// Who is at its other end.
    pub peer: Peer,
    /// Whether a session needs TLS.
    pub tls: bool,
}

/// A client's socket.
pub enum Socket {
    /// TCP.
    Tcp(TcpStream),
    /// A Unix socket.
    Unix(UnixStream),
}

impl Socket {
    /// Waits until the client has said something, or has closed.
    ///
    /// # Errors
    /// Those of the operating system.
    pub async fn heard(&self) -> io::Result<()> {
        // Readiness alone may be a false alarm: what is there has to be looked at.
        let looked = match self {
            Self::Tcp(socket) => socket.peek(&mut [0]).await,
            Self::Unix(socket) => {
                let look = || SockRef::from(socket).peek(&mut [MaybeUninit::uninit()]);
                socket.async_io(Interest::READABLE, look).await
            }
        };
        looked.map(drop)
    }
}

/// An [`Arrival`] on its way to another thread: no event loop watches it.
pub struct Leaving {
    socket: Loose,
    peer: Peer,
    tls: bool,
}

enum Loose {
    Tcp(std::net::TcpStream),
    Unix(std::os::unix::net::UnixStream),
}

impl Arrival {
    /// Takes it from the calling thread's event loop.
    ///
    /// # Errors
    /// Those of the event queue.
    pub fn leave_thread(self) -> io::Result<Leaving> {
        let socket = match self.socket {
            Socket::Tcp(socket) => Loose::Tcp(socket.into_std()?),
            Socket::Unix(socket) => Loose::Unix(socket.into_std()?),
        };
        Ok(Leaving { socket, peer: self.peer, tls: self.tls })
    }
}

impl Leaving {
    /// Has it watched by the calling thread's event loop.
    ///
    /// # Errors
    /// Those of the event queue.
    pub fn arrive(self) -> io::Result<Arrival> {
        let socket = match self.socket {
            Loose::Tcp(socket) => Socket::Tcp(TcpStream::from_std(socket)?),
            Loose::Unix(socket) => Socket::Unix(UnixStream::from_std(socket)?),
        };
        Ok(Arrival { socket, peer: self.peer, tls: self.tls })
    }
}

/// A client's address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    /// Over TCP.
    Tcp(SocketAddr),
    /// Through the Unix socket: from this machine.
    Unix,
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix => f.write_str("unix"),
        }
    }
}

impl Door {
    /// The next client.
    ///
    /// # Errors
    /// Those of `accept(2)`.
    pub async fn accept(&self) -> io::Result<Arrival> {
        let tls = matches!(self, Self::Tls(_));
        match self {
            Self::Tls(listener) | Self::Plain(listener) => {
                let (socket, peer) = listener.accept().await?;
                Ok(Arrival { socket: Socket::Tcp(socket), peer: Peer::Tcp(peer), tls })
            }
            Self::Unix(door) => {
                let (socket, _) = door.listener.accept().await?;
                Ok(Arrival { socket: Socket::Unix(socket), peer: Peer::Unix, tls })
            }
        }
    }
}

/// Binds `address`; port 0 lets the kernel choose.
///
/// # Errors
/// Those of the operating system.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // So that a restart need not wait for the old process's connections to time out.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Small messages go out at once, and a peer that vanished without a word is noticed.
///
/// # Errors
/// Those of the operating system; a socket that has failed already is one.
pub fn tune(socket: &TcpStream, tcp: &TcpConfig) -> io::Result<()> {
    let milliseconds = Duration::from_millis;
    socket.set_nodelay(true)?;
    let socket = SockRef::from(socket);
    let keepalive = TcpKeepalive::new()
        .with_time(milliseconds(tcp.keepalive_idle_ms))
        .with_interval(milliseconds(tcp.keepalive_interval_ms))
        .with_retries(tcp.keepalive_probes);
    socket.set_tcp_keepalive(&keepalive)?;
    match tcp.user_timeout_ms {
        0 => Ok(()),
        limit => socket.set_tcp_user_timeout(Some(milliseconds(limit))),
    }
}

/// A listening Unix socket; its file goes with it.
pub struct UnixDoor {
    listener: UnixListener,
    path: PathBuf,
    /// Device and inode: another process may have put its own in place meanwhile.
    file: (u64, u64),
}

impl UnixDoor {
    /// Listens at `path`, open to whom `mode` says. The file that a process left behind which is gone is replaced.
    ///
    /// # Errors
    /// [`io::ErrorKind::AddrInUse`] when another process listens there, [`io::ErrorKind::AlreadyExists`] when there is
    /// something that is no socket, and those of the operating system.
    pub fn bind(path: &Path, mode: u32) -> io::Result<Self> {
        refuse_what_is_not_stale(path)?;
        // Under another name until the mode is right, and then in place at once: nobody connects in between, and of two
        // that start together none removes what the other listens on without being seen.
        let half = half_done(path);
        let _ = std::fs::remove_file(&half);
        let listener = UnixListener::bind(&half)?;
        let done = std::fs::set_permissions(&half, std::fs::Permissions::from_mode(mode))
            .and_then(|()| std::fs::rename(&half, path))
            .and_then(|()| std::fs::symlink_metadata(path));
        match done {
            Ok(metadata) => Ok(Self { listener, path: path.to_owned(), file: (metadata.dev(), metadata.ino()) }),
            Err(error) => {
                let _ = std::fs::remove_file(&half);
                Err(error)
            }
        }
    }
}

impl Drop for UnixDoor {
    fn drop(&mut self) {
        let ours = std::fs::symlink_metadata(&self.path).is_ok_and(|now| (now.dev(), now.ino()) == self.file);
        if ours {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn half_done(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}", std::process::id()));
    name.into()
}

fn refuse_what_is_not_stale(path: &Path) -> io::Result<()> {
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            Err(io::Error::new(io::ErrorKind::AlreadyExists, "there is a file that is no socket"))
        }
        Ok(_) => match std::os::unix::net::UnixStream::connect(path) {
            Ok(_) => Err(io::Error::new(io::ErrorKind::AddrInUse, "another process listens there")),
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
            Err(error) => Err(error),
        },
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::testing::Dir;

    #[tokio::test]
    async fn a_unix_socket_has_its_mode_and_goes_with_its_owner() {
        let dir = Dir::new();
        let path = dir.path().join(".s.PGSQL.6432");
        let door = UnixDoor::bind(&path, 0o600).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "nothing half done is left");
        let client = UnixStream::connect(&path).await.unwrap();
        let arrival = Door::Unix(door).accept().await.unwrap();
        assert_eq!((arrival.peer.to_string().as_str(), arrival.tls), ("unix", false));
        drop(client);
        assert!(!path.exists(), "the door is gone, and its file");
    }

    #[tokio::test]
    async fn a_stale_file_is_replaced_and_nothing_else_is() {
        let dir = Dir::new();
        let path = dir.path().join("socket");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists(), "as a killed process leaves it");
        let first = UnixDoor::bind(&path, 0o660).unwrap();
        let error = UnixDoor::bind(&path, 0o660).err().unwrap();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse, "{error}");

        // Another one in its place is not removed by the first one's end.
        std::fs::remove_file(&path).unwrap();
        let second = UnixDoor::bind(&path, 0o660).unwrap();
        drop(first);
        assert!(path.exists());
        drop(second);

        let file = dir.write("file", "precious");
        let error = UnixDoor::bind(&file, 0o660).err().unwrap();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists, "{error}");
        assert_eq!(std::fs::read(&file).unwrap(), b"precious");
        let nowhere = UnixDoor::bind(Path::new("/nonexistent/socket"), 0o660).err().unwrap();
        assert_eq!(nowhere.kind(), io::ErrorKind::NotFound);
    }

    #[tokio::test]
    async fn a_client_is_heard_when_it_says_something_or_closes() {
        let dir = Dir::new();
        let tcp = bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        let address = tcp.local_addr().unwrap();
        let path = dir.path().join("socket");
        let doors = [Door::Tls(tcp), Door::Unix(UnixDoor::bind(&path, 0o600).unwrap())];
        for (at, closes) in [(0, false), (0, true), (1, false), (1, true)] {
            let client = match at {
                0 => Socket::Tcp(TcpStream::connect(address).await.unwrap()),
                _ => Socket::Unix(UnixStream::connect(&path).await.unwrap()),
            };
            let arrived = doors[at].accept().await.unwrap().socket;
            let mut hearing = Box::pin(arrived.heard());
            let early = tokio::time::timeout(Duration::from_millis(50), &mut hearing).await;
            assert!(early.is_err(), "nothing was said");
            let kept = if closes {
                drop(client);
                None
            } else {
                match &client {
                    Socket::Tcp(socket) => socket.try_write(b"x").unwrap(),
                    Socket::Unix(socket) => socket.try_write(b"x").unwrap(),
                };
                Some(client)
            };
            tokio::time::timeout(Duration::from_secs(10), hearing).await.unwrap().unwrap();
            drop(kept);
        }
    }

    #[tokio::test]
    async fn a_vanished_peer_is_looked_for() {
        let listener = bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        let socket = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let tcp = TcpConfig {
            keepalive_idle_ms: 7_000,
            keepalive_interval_ms: 3_000,
            keepalive_probes: 2,
            user_timeout_ms: 9_500,
        };
        tune(&socket, &tcp).unwrap();
        let seen = SockRef::from(&socket);
        assert!(socket.nodelay().unwrap() && seen.keepalive().unwrap());
        assert_eq!(seen.tcp_keepalive_time().unwrap(), Duration::from_secs(7));
        assert_eq!(seen.tcp_keepalive_interval().unwrap(), Duration::from_secs(3));
        assert_eq!(seen.tcp_keepalive_retries().unwrap(), 2);
        assert_eq!(seen.tcp_user_timeout().unwrap(), Some(Duration::from_millis(9_500)));
    }
}
