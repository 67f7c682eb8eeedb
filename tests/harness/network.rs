//! A stretch of network between two parties, on 127.0.0.1: bytes pass as they come, until a test wants it otherwise. A
//! connection can break after any number of bytes in either direction, in every way in which networks do, and all of them
//! can be slow.

use std::{
    collections::VecDeque,
    io,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
    time::{Instant, timeout_at},
};

use crate::wait::until;

/// How a connection breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Break {
    /// Both sides see an orderly end of the stream.
    Close,
    /// Both sides see a reset.
    Reset,
    /// Nothing passes any more, and neither side is told.
    Stall,
    /// The side that listens gets bytes that nobody has sent, then an end of the stream.
    Garble,
}

/// Where a connection breaks.
#[derive(Clone, Copy, Debug)]
pub struct Fault {
    /// Which of both directions is counted: towards the server, or from it.
    pub to_server: bool,
    /// How many bytes pass before.
    pub after: u64,
    /// How long the connection still works behind them: what they ask for is under way then.
    pub later: Duration,
    /// What happens then.
    pub way: Break,
}

/// The stretch. Dropping it closes all that is open.
#[derive(Debug)]
pub struct Network {
    /// Where to connect instead.
    pub port: u16,
    state: Arc<State>,
    _connections: JoinSet<()>,
}

#[derive(Debug)]
struct State {
    target: u16,
    faults: Mutex<VecDeque<Fault>>,
    struck: AtomicUsize,
    open: AtomicUsize,
    most: [AtomicU64; 2],
    bytes_per_second: AtomicU64,
    broken: watch::Sender<(u64, Break)>,
    stalls_ended: watch::Sender<u64>,
}

impl Network {
    /// A stretch to `target` on 127.0.0.1.
    pub async fn to(target: u16) -> Network {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
        let port = listener.local_addr().expect("its number").port();
        let state = Arc::new(State {
            target,
            faults: Mutex::default(),
            struck: AtomicUsize::new(0),
            open: AtomicUsize::new(0),
            most: Default::default(),
            bytes_per_second: AtomicU64::new(0),
            broken: watch::Sender::new((0, Break::Close)),
            stalls_ended: watch::Sender::new(0),
        });
        let mut tasks = JoinSet::new();
        tasks.spawn(accept(listener, state.clone()));
        Network { port, state, _connections: tasks }
    }

    /// The next connections break so, one each; those after them do not.
    pub fn plan(&self, faults: impl IntoIterator<Item = Fault>) {
        self.state.faults().extend(faults);
    }

    /// How many planned breaks no connection has taken yet.
    #[must_use]
    pub fn planned(&self) -> usize {
        self.state.faults().len()
    }

    /// How many planned breaks have happened.
    #[must_use]
    pub fn struck(&self) -> usize {
        self.state.struck.load(Relaxed)
    }

    /// Breaks all connections that are open now, and those that stall.
    pub fn break_all(&self, way: Break) {
        self.state.broken.send_modify(|(count, last)| (*count, *last) = (*count + 1, way));
    }

    /// As it was in the beginning: nothing is planned, nothing is slow, and what was open is closed.
    pub async fn heal(&self) {
        self.state.faults().clear();
        self.slow(None);
        self.break_all(Break::Close);
        until("broken connections to go", async || (self.open() == 0).then_some(())).await;
        self.state.most.iter().for_each(|most| most.store(0, Relaxed));
    }

    /// Closes the connections that stall: what was lost is noticed at last.
    pub fn end_stalls(&self) {
        self.state.stalls_ended.send_modify(|count| *count += 1);
    }

    /// Bounds each direction of each connection; `None` for no bound.
    pub fn slow(&self, bytes_per_second: Option<u64>) {
        self.state.bytes_per_second.store(bytes_per_second.unwrap_or(0), Relaxed);
    }

    /// How many connections there are now.
    #[must_use]
    pub fn open(&self) -> usize {
        self.state.open.load(Relaxed)
    }

    /// The most bytes that a connection has carried to the server and from it, since the last [`Network::heal`].
    #[must_use]
    pub fn most(&self) -> [u64; 2] {
        [&self.state.most[0], &self.state.most[1]].map(|most| most.load(Relaxed))
    }
}

impl State {
    fn faults(&self) -> MutexGuard<'_, VecDeque<Fault>> {
        self.faults.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// When somebody says that all connections break.
    async fn broken(&self) -> Break {
        let mut broken = self.broken.subscribe();
        match broken.changed().await {
            Ok(()) => broken.borrow().1,
            Err(_) => std::future::pending().await,
        }
    }
}

async fn accept(listener: TcpListener, state: Arc<State>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                if let Ok((client, _)) = accepted {
                    connections.spawn(carry(client, state.clone()));
                }
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn carry(mut client: TcpStream, state: Arc<State>) {
    let fault = state.faults().pop_front();
    let Ok(mut server) = TcpStream::connect(("127.0.0.1", state.target)).await else { return };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    state.open.fetch_add(1, Relaxed);
    let broken = state.broken();
    tokio::pin!(broken);
    let of = |to_server: bool| fault.filter(|fault| fault.to_server == to_server);
    let (mut from_client, mut to_client) = client.split();
    let (mut from_server, mut to_server) = server.split();
    let both = async {
        tokio::try_join!(
            pass(&mut from_client, &mut to_server, of(true), &state, 0),
            pass(&mut from_server, &mut to_client, of(false), &state, 1),
        )
    };
    let mut way = tokio::select! {
        way = &mut broken => way,
        passed = both => passed.err().unwrap_or(Break::Close),
    };
    if way == Break::Stall {
        let mut ended = state.stalls_ended.subscribe();
        way = tokio::select! {
            way = state.broken() => way,
            _ = ended.changed() => Break::Close,
        };
    }
    if way == Break::Reset {
        let _ = (client.set_zero_linger(), server.set_zero_linger());
    }
    state.open.fetch_sub(1, Relaxed);
}

/// One direction, to its end or to its break.
async fn pass(
    from: &mut (impl AsyncRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
    fault: Option<Fault>,
    state: &State,
    direction: usize,
) -> Result<(), Break> {
    let mut buffer = vec![0; 16 * 1024];
    let (mut passed, mut ends) = (0_u64, None);
    loop {
        let left = fault.filter(|_| ends.is_none()).map_or(u64::MAX, |fault| fault.after - passed);
        if let (0, Some(fault)) = (left, fault) {
            state.struck.fetch_add(1, Relaxed);
            ends = Some((Instant::now() + fault.later, fault));
            continue;
        }
        let speed = state.bytes_per_second.load(Relaxed);
        let most = if speed == 0 { buffer.len() as u64 } else { (speed / 50).clamp(1, buffer.len() as u64) };
        let most = usize::try_from(most.min(left)).unwrap_or(buffer.len());
        let read = from.read(&mut buffer[..most]);
        let count = match ends {
            None => read.await.map_err(as_break)?,
            // A read that could go on at once does not, when the time has come.
            Some((at, fault)) => match timeout_at(at, read).await {
                Ok(count) if Instant::now() < at => count.map_err(as_break)?,
                _ => {
                    if fault.way == Break::Garble {
                        let _ = to.write_all(&garbage(fault.after)).await;
                    }
                    return Err(fault.way);
                }
            },
        };
        if count == 0 {
            let _ = to.shutdown().await;
            return Ok(());
        }
        if let Some(micros) = (count as u64 * 1_000_000).checked_div(speed) {
            tokio::time::sleep(Duration::from_micros(micros)).await;
        }
        to.write_all(&buffer[..count]).await.map_err(as_break)?;
        passed += count as u64;
        state.most[direction].fetch_max(passed, Relaxed);
    }
}

/// Bytes that mean something here and there: types of messages, lengths that are too long, negative, or right.
fn garbage(number: u64) -> Vec<u8> {
    let pieces: [&[u8]; 8] = [
        b"\xff\xff\xff\xff",
        b"D\x7f\xff\xff\xff",
        b"Z\0\0\0\x05I",
        b"E\0\0\0\x05\0",
        b"C\0\0\0\x04",
        b"S\0\0\0\x0aclient",
        b"R\0\0\0\x08\0\0\0\0",
        b"\0\0\0\0",
    ];
    (0..9)
        .flat_map(|at| pieces[usize::try_from((number >> at) ^ (number * 31 + at)).unwrap_or(0) % 8])
        .copied()
        .collect()
}

/// What one side sees, the other sees.
fn as_break(error: io::Error) -> Break {
    match error.kind() {
        io::ErrorKind::ConnectionReset => Break::Reset,
        _ => Break::Close,
    }
}
