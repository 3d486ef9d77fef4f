//! A relay that lets one request through and loses its answer: the request took effect, and nobody knows.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

#[derive(Default)]
struct Shared {
    /// What the request holds, and how long its answer is at least.
    wanted: Mutex<Option<(Vec<u8>, usize)>>,
    lost: AtomicUsize,
}

/// In front of one server, on a port of its own.
pub struct LostReply {
    port: u16,
    shared: Arc<Shared>,
}

impl LostReply {
    pub async fn before(target: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let shared = Arc::new(Shared::default());
        let accepting = Arc::clone(&shared);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(relay(Arc::clone(&accepting), client, target));
            }
        });
        Self { port, shared }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Loses the answer to the next request that holds `part`, if that answer has at least `bytes`, and the connection with it.
    pub fn lose(&self, part: &[u8], bytes: usize) {
        *self.shared.wanted.lock().unwrap() = Some((part.to_vec(), bytes));
    }

    /// Answers that were lost so far.
    pub fn lost(&self) -> usize {
        self.shared.lost.load(Ordering::SeqCst)
    }
}

async fn relay(shared: Arc<Shared>, client: TcpStream, target: u16) {
    let Ok(server) = TcpStream::connect(("127.0.0.1", target)).await else { return };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let asked = AtomicBool::new(false);
    let requests = async {
        let mut piece = vec![0; 256 * 1024];
        while let Ok(len @ 1..) = from_client.read(&mut piece).await {
            if let Some((part, _)) = &*shared.wanted.lock().unwrap()
                && piece[..len].windows(part.len()).any(|window| window == part)
            {
                asked.store(true, Ordering::SeqCst);
            }
            if to_server.write_all(&piece[..len]).await.is_err() {
                break;
            }
        }
    };
    let answers = async {
        let mut piece = vec![0; 256 * 1024];
        while let Ok(len @ 1..) = from_server.read(&mut piece).await {
            if asked.load(Ordering::SeqCst) {
                let mut wanted = shared.wanted.lock().unwrap();
                if wanted.as_ref().is_some_and(|(_, bytes)| len >= *bytes) {
                    *wanted = None;
                    shared.lost.fetch_add(1, Ordering::SeqCst);
                    return;
                }
            }
            if to_client.write_all(&piece[..len]).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = requests => {}
        () = answers => {}
    }
}
