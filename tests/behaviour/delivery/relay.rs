//! A relay that does something at one certain request: it loses the answer, so that the request took effect and nobody knows, or
//! it leads to another server from then on, as an address does whose primary failed.

use std::sync::atomic::{AtomicBool, AtomicU16, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// What happens at the request.
#[derive(Clone, Copy, Debug)]
pub enum Deed {
    /// Its answer is lost, if it has at least so many bytes, and the connection with it.
    LoseAnswer(usize),
    /// It never arrives; connections end, and new ones lead to the server on this port.
    LeadTo(u16),
    /// It arrives, and its answer does; then as with [`Deed::LeadTo`].
    AnswerThenLeadTo(u16),
}

struct Shared {
    target: AtomicU16,
    /// What the request holds, and what happens then.
    wanted: Mutex<Option<(Vec<u8>, Deed)>>,
    done: AtomicUsize,
    /// Ends all connections.
    cut: watch::Sender<()>,
}

impl Shared {
    fn lead_to(&self, port: u16) {
        *self.wanted.lock().unwrap() = None;
        self.target.store(port, Ordering::SeqCst);
        self.done.fetch_add(1, Ordering::SeqCst);
        self.cut.send_replace(());
    }
}

/// In front of one server, on a port of its own.
pub struct Relay {
    port: u16,
    shared: Arc<Shared>,
}

impl Relay {
    pub async fn before(target: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let shared = Arc::new(Shared {
            target: target.into(),
            wanted: Mutex::default(),
            done: AtomicUsize::default(),
            cut: watch::Sender::new(()),
        });
        let accepting = Arc::clone(&shared);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(relay(Arc::clone(&accepting), client));
            }
        });
        Self { port, shared }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Does this once, at the next request that holds `part`.
    pub fn at(&self, part: &[u8], deed: Deed) {
        *self.shared.wanted.lock().unwrap() = Some((part.to_vec(), deed));
    }

    /// How often it was done.
    pub fn done(&self) -> usize {
        self.shared.done.load(Ordering::SeqCst)
    }
}

async fn relay(shared: Arc<Shared>, client: TcpStream) {
    let mut cut = shared.cut.subscribe();
    let Ok(server) = TcpStream::connect(("127.0.0.1", shared.target.load(Ordering::SeqCst))).await else { return };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let asked = AtomicBool::new(false);
    let requests = async {
        let mut piece = vec![0; 256 * 1024];
        while let Ok(len @ 1..) = from_client.read(&mut piece).await {
            let deed = shared
                .wanted
                .lock()
                .unwrap()
                .as_ref()
                .and_then(|(part, deed)| piece[..len].windows(part.len()).any(|window| window == part).then_some(*deed));
            match deed {
                Some(Deed::LeadTo(port)) => return shared.lead_to(port),
                Some(_) => asked.store(true, Ordering::SeqCst),
                None => {}
            }
            if to_server.write_all(&piece[..len]).await.is_err() {
                break;
            }
        }
    };
    let answers = async {
        let mut piece = vec![0; 256 * 1024];
        while let Ok(len @ 1..) = from_server.read(&mut piece).await {
            let deed = match &*shared.wanted.lock().unwrap() {
                Some((_, deed)) if asked.load(Ordering::SeqCst) => Some(*deed),
                _ => None,
            };
            if let Some(Deed::LoseAnswer(least)) = deed
                && len >= least
            {
                *shared.wanted.lock().unwrap() = None;
                shared.done.fetch_add(1, Ordering::SeqCst);
                return;
            }
            if to_client.write_all(&piece[..len]).await.is_err() {
                return;
            }
            if let Some(Deed::AnswerThenLeadTo(port)) = deed {
                return shared.lead_to(port);
            }
        }
    };
    tokio::select! {
        biased;
        _ = cut.changed() => {}
        () = requests => {}
        () = answers => {}
    }
}
