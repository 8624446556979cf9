//! Registers a socket with the runtime, and tries again while the kernel has no memory for that. EFFECT.
use std::io;
use std::time::Duration;

use socket2::Socket;
use sys::Unregistered;
use tokio::time::sleep;

use super::{Leg, is_out_of_resources};
use crate::host::kernel::LegOptions;
use crate::state::flow::Side;

/// How long to wait when descriptors or memory have run out, before another try.
pub const PAUSE: Duration = Duration::from_millis(50);
/// After so many pauses (a second) a connection that waits is reset: the gate is closed, and its next try is routed.
pub const PATIENCE: u32 = 20;

impl Leg {
    /// As [`Leg::new`], but tries again for a second while the kernel lacks memory; tells `lacking` each time.
    ///
    /// # Errors
    /// Those of the last try; the socket is then closed.
    pub async fn register(
        mut socket: Socket,
        side: Side,
        options: &LegOptions,
        out_of_resources: impl Fn(&io::Error),
    ) -> io::Result<Self> {
        for _ in 0..PATIENCE {
            match Self::new(socket, side, options) {
                Err(Unregistered { socket: back, err }) if is_out_of_resources(&err) => {
                    out_of_resources(&err);
                    socket = back;
                }
                done => return Ok(done?),
            }
            sleep(PAUSE).await;
        }
        Ok(Self::new(socket, side, options)?)
    }
}
