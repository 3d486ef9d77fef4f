//! A TCP proxy that breaks connections at an exact byte, and slows them down.

use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::schedule::{Cut, Direction};

/// Set for the next byte number so and so, whichever connection carries it.
#[derive(Debug)]
struct Trap {
    direction: Direction,
    bytes_left: u64,
    cut: Cut,
}

#[derive(Debug, Default)]
struct State {
    trap: Option<Trap>,
    /// Each piece waits so long, until then.
    slow: Option<(Duration, Instant)>,
}

#[derive(Debug)]
struct Shared {
    target: u16,
    state: Mutex<State>,
    /// Counts the times at which every connection was cut.
    cut_all: watch::Sender<u32>,
}

/// What a pump is to do with the bytes that it has.
enum Order {
    Pass,
    /// Pass so many of them, then this.
    Break(usize, Cut),
}

/// A proxy in front of one server.
#[derive(Clone, Debug)]
pub struct Weather {
    shared: Arc<Shared>,
    port: u16,
    _stop: Arc<tokio_util::sync::DropGuard>,
}

impl Weather {
    /// In front of 127.0.0.1:`target`.
    pub async fn before(target: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let shared = Arc::new(Shared { target, state: Mutex::default(), cut_all: watch::Sender::new(0) });
        let stop = CancellationToken::new();
        let (accepting, token) = (Arc::clone(&shared), stop.clone());
        tokio::spawn(token.run_until_cancelled_owned(async move {
            loop {
                if let Ok((client, _)) = listener.accept().await {
                    tokio::spawn(connect(Arc::clone(&accepting), client));
                }
            }
        }));
        Self { shared, port, _stop: Arc::new(stop.drop_guard()) }
    }

    pub const fn port(&self) -> u16 {
        self.port
    }

    /// Breaks whichever connection carries the byte `after_bytes` from now in that direction.
    pub fn set_trap(&self, direction: Direction, after_bytes: u64, cut: Cut) {
        self.shared.state.lock().unwrap().trap = Some(Trap { direction, bytes_left: after_bytes, cut });
    }

    /// Whether the trap has not sprung yet.
    pub fn is_set(&self) -> bool {
        self.shared.state.lock().unwrap().trap.is_some()
    }

    /// Takes the trap away; returns whether it was still set.
    pub fn disarm(&self) -> bool {
        self.shared.state.lock().unwrap().trap.take().is_some()
    }

    /// Resets every connection.
    pub fn cut_all(&self) {
        self.shared.cut_all.send_modify(|times| *times += 1);
    }

    /// Each piece waits for `delay`, for `time` from now.
    pub fn delay(&self, delay: Duration, time: Duration) {
        self.shared.state.lock().unwrap().slow = Some((delay, Instant::now() + time));
    }

    /// From now on everything passes.
    pub fn clear(&self) {
        *self.shared.state.lock().unwrap() = State::default();
    }
}

impl Shared {
    fn order(&self, direction: Direction, bytes: usize) -> Order {
        let mut state = self.state.lock().unwrap();
        let Some(trap) = state.trap.as_mut().filter(|trap| trap.direction == direction) else { return Order::Pass };
        if trap.bytes_left >= bytes as u64 {
            trap.bytes_left -= bytes as u64;
            return Order::Pass;
        }
        let order = Order::Break(trap.bytes_left as usize, trap.cut);
        state.trap = None;
        order
    }

    fn pause(&self) -> Option<Duration> {
        let state = self.state.lock().unwrap();
        state.slow.filter(|(_, until)| Instant::now() < *until).map(|(delay, _)| delay)
    }
}

async fn connect(shared: Arc<Shared>, client: TcpStream) {
    let mut cut_all = shared.cut_all.subscribe();
    // Without a server the client sees its connection end at once: a refusal in all but name.
    let Ok(server) = TcpStream::connect(("127.0.0.1", shared.target)).await else { return };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let ended = {
        let mut up = pin!(pump(&shared, Direction::ToServer, &mut from_client, &mut to_server));
        let mut down = pin!(pump(&shared, Direction::ToClient, &mut from_server, &mut to_client));
        tokio::select! {
            _ = cut_all.changed() => Ended::Cut(Cut::Reset),
            ended = &mut up => match ended {
                // One way is over; the other goes on until it ends as well.
                Ended::Orderly | Ended::Cut(Cut::Half) => tokio::select! {
                    _ = cut_all.changed() => Ended::Cut(Cut::Reset),
                    ended = down => ended,
                },
                ended => ended,
            },
            ended = &mut down => match ended {
                Ended::Orderly | Ended::Cut(Cut::Half) => tokio::select! {
                    _ = cut_all.changed() => Ended::Cut(Cut::Reset),
                    ended = up => ended,
                },
                ended => ended,
            },
        }
    };
    if let Ended::Broken | Ended::Cut(Cut::Reset) = ended {
        let _ = (to_client.as_ref().set_zero_linger(), to_server.as_ref().set_zero_linger());
    }
}

/// How a way ended.
enum Ended {
    /// The sender said that it was done, and the receiver was told.
    Orderly,
    Broken,
    Cut(Cut),
}

async fn pump(shared: &Shared, direction: Direction, from: &mut OwnedReadHalf, to: &mut OwnedWriteHalf) -> Ended {
    let mut buffer = vec![0; 32 * 1024];
    loop {
        let read = match from.read(&mut buffer).await {
            Ok(0) => {
                let _ = to.shutdown().await;
                return Ended::Orderly;
            }
            Ok(read) => read,
            Err(_) => return Ended::Broken,
        };
        if let Some(pause) = shared.pause() {
            tokio::time::sleep(pause).await;
        }
        let (bytes, cut) = match shared.order(direction, read) {
            Order::Pass => (read, None),
            Order::Break(bytes, cut) => (bytes, Some(cut)),
        };
        if to.write_all(&buffer[..bytes]).await.is_err() {
            return Ended::Broken;
        }
        if let Some(cut) = cut {
            if cut != Cut::Reset {
                let _ = to.shutdown().await;
            }
            return Ended::Cut(cut);
        }
    }
}

#[tokio::test]
async fn a_connection_breaks_at_the_byte() {
    let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let weather = Weather::before(server.local_addr().unwrap().port()).await;
    for cut in [Cut::Reset, Cut::Close, Cut::Half] {
        weather.set_trap(Direction::ToServer, 1_000, cut);
        let mut client = TcpStream::connect(("127.0.0.1", weather.port())).await.unwrap();
        let (mut accepted, _) = server.accept().await.unwrap();
        client.write_all(&[7; 3_000]).await.unwrap();
        let mut got = Vec::new();
        let ended = accepted.read_to_end(&mut got).await;
        assert!(cut == Cut::Reset || ended.is_ok(), "{cut:?}: {ended:?}");
        assert_eq!(got.len(), 1_000, "{cut:?}");
        assert!(!weather.is_set());
        if cut == Cut::Half {
            accepted.write_all(b"still here").await.unwrap();
            drop(accepted);
            got.clear();
            client.read_to_end(&mut got).await.unwrap();
            assert_eq!(got, b"still here");
        } else {
            let read = tokio::time::timeout(Duration::from_secs(5), client.read_to_end(&mut got)).await;
            assert!(read.is_ok(), "{cut:?}: the client is told as well");
        }
    }
}
