//! A relay between the gate and its PostgreSQL that holds cancel requests back until a test lets them go.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::SeqCst},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional},
    net::{TcpListener, TcpStream},
    sync::watch,
};

use crate::{stack::Stack, wait::until};

/// CancelRequest: its length, and the code that stands in the place of a protocol version.
const CANCEL_REQUEST: [u8; 8] = [0, 0, 0, 16, 4, 210, 22, 46];

/// The relay. It ends with the test's runtime.
#[derive(Debug)]
pub struct Between {
    /// Where it listens, on 127.0.0.1.
    pub port: u16,
    cancels: Arc<AtomicUsize>,
    open: watch::Sender<bool>,
}

impl Between {
    /// Listens, and has the proxy of this stack reach its PostgreSQL through it.
    ///
    /// # Panics
    /// When it cannot listen.
    pub async fn stand(stack: &mut Stack) -> Between {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let cancels = Arc::new(AtomicUsize::new(0));
        let (open, _) = watch::channel(false);
        let (server, seen, gate) = (stack.access.postgres_port, cancels.clone(), open.clone());
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                // Whoever hangs up ends his own connection only.
                tokio::spawn(pass_on(client, server, seen.clone(), gate.subscribe()));
            }
        });
        stack.kill_sidecar();
        stack.start_sidecar_with(&[("servers.main.port", port.to_string())]).await;
        Between { port, cancels, open }
    }

    /// Waits until so many cancel requests have come, since the start.
    pub async fn cancels(&self, count: usize) {
        let what = format!("{count} cancel requests");
        until(&what, async || (self.cancels.load(SeqCst) >= count).then_some(())).await;
    }

    /// Lets cancel requests through, those that were held back and those that come.
    pub fn let_go(&self) {
        self.open.send_replace(true);
    }

    /// Holds back those that come from here on.
    pub fn hold(&self) {
        self.open.send_replace(false);
    }
}

async fn pass_on(
    mut client: TcpStream,
    server: u16,
    cancels: Arc<AtomicUsize>,
    mut open: watch::Receiver<bool>,
) -> std::io::Result<()> {
    let mut head = [0; 8];
    client.read_exact(&mut head).await?;
    if head == CANCEL_REQUEST {
        cancels.fetch_add(1, SeqCst);
        open.wait_for(|open| *open).await.map_err(std::io::Error::other)?;
    }
    let mut server = TcpStream::connect(("127.0.0.1", server)).await?;
    server.set_nodelay(true)?;
    client.set_nodelay(true)?;
    server.write_all(&head).await?;
    copy_bidirectional(&mut client, &mut server).await.map(drop)
}
