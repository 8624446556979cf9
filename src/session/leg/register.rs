//! Registration of a socket with the runtime, with retries while the kernel has no memory for it. EFFECT.
use std::io;
use std::time::Duration;

use socket2::Socket;
use sys::Unregistered;
use tokio::time::sleep;

use super::{Leg, is_out_of_resources};
use crate::host::kernel::LegOptions;
use crate::state::flow::Side;

/// Pause before the next attempt when descriptors or memory have run out.
pub const PAUSE: Duration = Duration::from_millis(50);
/// Number of pauses (1 s in all) after which a waiting connection is reset. The gate is closed by then, so the
/// client's next attempt is routed.
pub const PATIENCE: u32 = 20;

impl Leg {
    /// Works like [`Leg::new`], but retries for a second while the kernel is out of memory. Calls `out_of_resources`
    /// with the error before each retry.
    ///
    /// # Errors
    /// Those of the last attempt; the socket is then closed.
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
