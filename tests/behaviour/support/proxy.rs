//! A TCP proxy in front of a real server: faults on the way, switchable at run time.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// Which way bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the program to the server: requests.
    ToServer,
    /// From the server to the program: answers.
    ToClient,
}

/// What the proxy does with connections, new and open ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Passes everything.
    Pass,
    /// Open connections are cut; new ones are refused, since nothing listens.
    Refuse,
    /// Passes so many more bytes in this direction, all connections together, then cuts the connection that would pass the
    /// next one, and goes back to [`Mode::Pass`] by itself: a request that arrived whose answer did not, or half a request.
    CutAfter(Direction, u64),
    /// Like [`Mode::CutAfter`], but [`Mode::Refuse`] follows.
    CutAfterThenRefuse(Direction, u64),
    /// Passes each piece so much later.
    Delay(Duration),
    /// Ends this direction of open connections in order (FIN) and keeps the other one; new connections pass.
    HalfClose(Direction),
    /// Connections stay open and can be made; no byte passes until another mode is set, when those held back go on.
    Blackhole,
}

struct Shared {
    target: u16,
    mode: watch::Sender<Mode>,
    /// Raised to cut all open connections.
    cut: watch::Sender<u64>,
    to_server: AtomicU64,
    to_client: AtomicU64,
    /// Bytes that [`Mode::CutAfter`] still passes.
    left: AtomicU64,
    accepted: AtomicU64,
    open: AtomicUsize,
    cuts: AtomicU64,
}

/// A proxy on a port of its own; it ends with the value.
pub struct Proxy {
    port: u16,
    shared: Arc<Shared>,
    task: tokio::task::JoinHandle<()>,
}

impl Proxy {
    /// A proxy in front of 127.0.0.1:`target`, passing everything. Runs in the test's runtime.
    pub async fn start(target: u16) -> Self {
        let port = super::servers::free_port();
        let listener = TcpListener::bind(("127.0.0.1", port)).await.expect("a free port");
        let shared = Arc::new(Shared {
            target,
            mode: watch::Sender::new(Mode::Pass),
            cut: watch::Sender::new(0),
            to_server: AtomicU64::new(0),
            to_client: AtomicU64::new(0),
            left: AtomicU64::new(0),
            accepted: AtomicU64::new(0),
            open: AtomicUsize::new(0),
            cuts: AtomicU64::new(0),
        });
        let task = tokio::spawn(accept(Arc::clone(&shared), listener, port));
        Self { port, shared, task }
    }

    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// From now on this.
    pub fn set(&self, mode: Mode) {
        if let Mode::CutAfter(_, bytes) | Mode::CutAfterThenRefuse(_, bytes) = mode {
            self.shared.left.store(bytes, Ordering::SeqCst);
        }
        self.shared.mode.send_replace(mode);
        if mode == Mode::Refuse {
            self.cut();
        }
    }

    /// The mode; [`Mode::CutAfter`] that was done is [`Mode::Pass`] again.
    pub fn mode(&self) -> Mode {
        *self.shared.mode.borrow()
    }

    /// Cuts all open connections now, in both directions.
    pub fn cut(&self) {
        self.shared.cut.send_modify(|cuts| *cuts += 1);
    }

    /// Bytes that passed so far.
    pub fn bytes(&self, direction: Direction) -> u64 {
        self.shared.counter(direction).load(Ordering::SeqCst)
    }

    /// Connections that were accepted so far.
    pub fn accepted(&self) -> u64 {
        self.shared.accepted.load(Ordering::SeqCst)
    }

    /// Connections that are open.
    pub fn open(&self) -> usize {
        self.shared.open.load(Ordering::SeqCst)
    }

    /// How often [`Mode::CutAfter`] cut.
    pub fn cuts(&self) -> u64 {
        self.shared.cuts.load(Ordering::SeqCst)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
        self.cut();
    }
}

impl Shared {
    fn counter(&self, direction: Direction) -> &AtomicU64 {
        match direction {
            Direction::ToServer => &self.to_server,
            Direction::ToClient => &self.to_client,
        }
    }
}

async fn accept(shared: Arc<Shared>, listener: TcpListener, port: u16) {
    let mut listener = Some(listener);
    let mut mode = shared.mode.subscribe();
    loop {
        if *mode.borrow_and_update() == Mode::Refuse {
            listener = None;
            if mode.changed().await.is_err() {
                return;
            }
            continue;
        }
        if listener.is_none() {
            match TcpListener::bind(("127.0.0.1", port)).await {
                Ok(bound) => listener = Some(bound),
                Err(_) => {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                    continue;
                }
            }
        }
        let Some(listening) = &listener else { continue };
        tokio::select! {
            biased;
            _ = mode.changed() => {}
            accepted = listening.accept() => if let Ok((client, _)) = accepted {
                shared.accepted.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(serve(Arc::clone(&shared), client));
            }
        }
    }
}

async fn serve(shared: Arc<Shared>, client: TcpStream) {
    let mut cut = shared.cut.subscribe();
    let Ok(server) = TcpStream::connect(("127.0.0.1", shared.target)).await else { return };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    shared.open.fetch_add(1, Ordering::SeqCst);
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let requests = pump(&shared, Direction::ToServer, from_client, to_server);
    let answers = pump(&shared, Direction::ToClient, from_server, to_client);
    tokio::select! {
        biased;
        _ = cut.changed() => {}
        // A pump that ends in order half-closes; one that fails, or is cut, ends both.
        _ = async { tokio::try_join!(requests, answers) } => {}
    }
    shared.open.fetch_sub(1, Ordering::SeqCst);
}

/// Passes bytes one way until their end; an error cuts the connection.
async fn pump(shared: &Shared, direction: Direction, mut from: OwnedReadHalf, mut to: OwnedWriteHalf) -> Result<(), ()> {
    let mut mode = shared.mode.subscribe();
    // A connection that is newer than the mode is not half-closed by it.
    mode.mark_unchanged();
    let mut piece = vec![0; 64 * 1024];
    loop {
        if *mode.borrow() == Mode::Blackhole {
            mode.changed().await.map_err(drop)?;
            continue;
        }
        let len = tokio::select! {
            biased;
            changed = mode.changed() => {
                changed.map_err(drop)?;
                if *mode.borrow() == Mode::HalfClose(direction) {
                    return to.shutdown().await.map_err(drop);
                }
                continue;
            }
            read = from.read(&mut piece) => read.map_err(drop)?,
        };
        if len == 0 {
            return to.shutdown().await.map_err(drop);
        }
        // What was read before a blackhole began is held back as well.
        while *mode.borrow() == Mode::Blackhole {
            mode.changed().await.map_err(drop)?;
        }
        let now = *mode.borrow();
        let mut pass = len;
        let mut cut = None;
        match now {
            Mode::Delay(time) => tokio::time::sleep(time).await,
            Mode::CutAfter(way, _) | Mode::CutAfterThenRefuse(way, _) if way == direction => {
                let left =
                    shared.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| Some(left.saturating_sub(len as u64)));
                let left = left.unwrap_or_default();
                if left < len as u64 {
                    pass = left as usize;
                    cut = Some(if matches!(now, Mode::CutAfter(..)) { Mode::Pass } else { Mode::Refuse });
                }
            }
            _ => {}
        }
        if pass > 0 {
            to.write_all(&piece[..pass]).await.map_err(drop)?;
            shared.counter(direction).fetch_add(pass as u64, Ordering::SeqCst);
        }
        if let Some(then) = cut {
            shared.cuts.fetch_add(1, Ordering::SeqCst);
            shared.mode.send_replace(then);
            if then == Mode::Refuse {
                shared.cut.send_modify(|cuts| *cuts += 1);
            }
            return Err(());
        }
    }
}
