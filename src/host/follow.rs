//! Keeps something of ours in step with the host: looks again when the kernel says that something has changed, and when it is time. WIRING.
use std::io;
use std::time::{Duration, Instant};

use socket2::Socket;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::{sleep, timeout};

use crate::host::reserve::Reserve;

/// Changes come in bursts: so long after the first, all are dealt with at once.
const SETTLE: Duration = Duration::from_millis(50);
/// A look at much costs something: then nothing is done for so many times as long.
const REST: u32 = 3;
/// What failed is tried again so much later; each time twice as much.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(64);

/// When to look again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// When something changes.
    Changed,
    /// When something changes, and after that time at the latest.
    ChangedOrAfter(Duration),
    /// After that time, whatever changes: what was done about the failure changes something itself.
    After(Duration),
}

impl Next {
    /// When something changes, and at the first of these times.
    pub fn changed_or(times: impl IntoIterator<Item = Duration>) -> Self {
        times.into_iter().min().map_or(Self::Changed, Self::ChangedOrAfter)
    }

    async fn comes(self, socket: &AsyncFd<Socket>) -> io::Result<()> {
        let ready = match self {
            Self::After(pause) => {
                sleep(pause).await;
                return Ok(());
            }
            Self::ChangedOrAfter(longest) => match timeout(longest, socket.readable()).await {
                Ok(ready) => ready,
                Err(_) => return Ok(()),
            },
            Self::Changed => socket.readable().await,
        };
        ready?.clear_ready();
        Ok(())
    }
}

/// How long a failure that lasts is left alone.
#[derive(Debug, Default)]
pub struct Pause(Option<Duration>);

impl Pause {
    /// It has failed: the time until it is tried again.
    pub fn longer(&mut self) -> Duration {
        let pause = self.0.map_or(FIRST_PAUSE, |pause| (pause * 2).min(LONGEST_PAUSE));
        *self.0.insert(pause)
    }

    /// It has worked, or something else has failed.
    pub fn over(&mut self) {
        self.0 = None;
    }
}

/// Has `look` look at each word that comes to `socket` (`wan::events`), which it drains itself, the first time as `next` says. Ends when no
/// word can come any more, and says why.
pub async fn follow(socket: Socket, mut next: Next, mut look: impl FnMut(&Socket) -> Next) -> io::Error {
    let socket = match sys::async_socket(socket, Interest::READABLE) {
        Ok(socket) => socket,
        Err(err) => return err.into(),
    };
    let mut reserve = Reserve::take();
    loop {
        if let Err(err) = next.comes(&socket).await {
            return err;
        }
        sleep(SETTLE).await;
        let began = Instant::now();
        next = reserve.lend(|| look(socket.get_ref()));
        sleep(began.elapsed() * REST).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fails_again_is_tried_at_ever_longer_intervals() {
        let mut pause = Pause::default();
        let mut seconds = |n: usize| (0..n).map(|_| pause.longer().as_secs()).collect::<Vec<_>>();
        assert_eq!(seconds(8), [1, 2, 4, 8, 16, 32, 64, 64]);
        pause.over();
        assert_eq!(pause.longer(), FIRST_PAUSE);
    }

    #[test]
    fn the_first_of_the_times_counts() {
        let seconds = Duration::from_secs;
        assert_eq!(Next::changed_or([seconds(3), seconds(2)]), Next::ChangedOrAfter(seconds(2)));
        assert_eq!(Next::changed_or(None), Next::Changed);
    }
}
