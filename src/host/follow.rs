//! Keeps state of the program in step with the host. It looks again after each change that the kernel reports, and
//! after set times. WIRING.
use std::io;
use std::time::{Duration, Instant};

use socket2::Socket;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::{sleep, timeout};

use crate::host::reserve::Reserve;

/// The delay between the first change and the look: changes come in bursts, and one look handles the whole burst.
const SETTLE: Duration = Duration::from_millis(50);
/// The pause after a look, as a multiple of the look's duration: a look at many routes is expensive.
const REST: u32 = 3;
/// The pause before the first retry of a failed look; each further pause is twice as long.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// The longest pause between two retries.
const LONGEST_PAUSE: Duration = Duration::from_secs(64);

/// The condition for the next look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// After the next change.
    Changed,
    /// After the next change, and after this time at the latest.
    ChangedOrAfter(Duration),
    /// After this time, regardless of changes: the cleanup after a failure causes changes itself.
    After(Duration),
}

impl Next {
    /// Returns the condition that holds after the next change, and after the shortest of `times` at the latest.
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

/// The pause between retries while a failure lasts: 1 s at first, doubled up to 64 s.
#[derive(Debug, Default)]
pub struct Pause(Option<Duration>);

impl Pause {
    /// Records a failure and returns the pause before the next attempt.
    pub fn longer(&mut self) -> Duration {
        let pause = self.0.map_or(FIRST_PAUSE, |pause| (pause * 2).min(LONGEST_PAUSE));
        *self.0.insert(pause)
    }

    /// Resets the pause, after a success or when the failure has another cause.
    pub fn over(&mut self) {
        self.0 = None;
    }
}

/// Calls `look` after each event on `socket` (`wan::events`); `look` drains the socket itself and returns the
/// condition for its next call. `next` is the condition for the first call. Ends only when the socket fails, and
/// returns the error.
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
    fn the_pause_between_retries_doubles_up_to_64_seconds() {
        let mut pause = Pause::default();
        let mut seconds = |n: usize| (0..n).map(|_| pause.longer().as_secs()).collect::<Vec<_>>();
        assert_eq!(seconds(8), [1, 2, 4, 8, 16, 32, 64, 64]);
        pause.over();
        assert_eq!(pause.longer(), FIRST_PAUSE);
    }

    #[test]
    fn the_shortest_time_counts() {
        let seconds = Duration::from_secs;
        assert_eq!(Next::changed_or([seconds(3), seconds(2)]), Next::ChangedOrAfter(seconds(2)));
        assert_eq!(Next::changed_or(None), Next::Changed);
    }
}
