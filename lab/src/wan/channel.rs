//! One direction of a path. It uses neither a clock nor a socket: the caller passes the current time.
use std::collections::VecDeque;
use std::time::Duration;

use super::Conditions;
use super::loss::Dice;

/// An Ethernet frame.
pub type Frame = Vec<u8>;

/// The size in bytes of a typical bulk frame. The state of a lossy channel advances in steps of its transmission time.
const USUAL: usize = 1500;
/// A frame that is later than this counts as late.
const LATE: Duration = Duration::from_millis(1);

/// Counts of the frames of one direction, by their fate.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Frames that were delivered.
    pub delivered: u64,
    /// Bytes of the delivered frames.
    pub bytes: u64,
    /// Frames lost by the configured loss.
    pub lost: u64,
    /// Frames dropped because the queue was full.
    pub overflowed: u64,
    /// Frames dropped because the path was cut, including those in flight.
    pub cut: u64,
    /// Frames delivered more than a millisecond late, because this machine was too busy.
    pub late: u64,
    /// Frames lost unintentionally: this machine was too busy to receive them from a cable or to send them on one.
    pub missed: u64,
}

/// Frames wait for the link, are sent one after the other, and then are in flight. A time is the duration since a fixed
/// moment.
#[derive(Debug)]
pub(super) struct Channel {
    conditions: Conditions,
    dice: Dice,
    /// When the last frame entered.
    entered: Duration,
    cut: bool,
    /// The frames that wait for the link, each with its time of arrival here.
    waiting: VecDeque<(Duration, Frame)>,
    /// Bytes of the waiting frames and of the frame that is being sent.
    queued: usize,
    /// Bytes of the frame that is being sent, until the link is free.
    sending: usize,
    /// When the link finishes the last frame that it was given.
    free: Duration,
    /// The frames in flight, in order, each with the time of its delivery.
    flying: VecDeque<(Duration, Frame)>,
    pub counts: Counts,
}

impl Channel {
    pub fn new(conditions: Conditions, seed: u64) -> Self {
        Self {
            conditions,
            dice: Dice::new(seed),
            entered: Duration::ZERO,
            cut: false,
            waiting: VecDeque::new(),
            queued: 0,
            sending: 0,
            free: Duration::ZERO,
            flying: VecDeque::new(),
            counts: Counts::default(),
        }
    }

    /// Takes a frame in: queues, loses or drops it.
    pub fn offer(&mut self, now: Duration, frame: Frame) {
        self.advance(now);
        if self.cut {
            self.counts.cut += 1;
        } else if !is_for_many(&frame) && self.loses(now) {
            self.counts.lost += 1;
        } else if self.queued > 0 && self.queued + frame.len() > self.conditions.queue {
            self.counts.overflowed += 1;
        } else {
            self.queued += frame.len();
            self.waiting.push_back((now, frame));
            self.advance(now);
        }
    }

    /// Returns whether a frame that enters now is lost.
    fn loses(&mut self, now: Duration) -> bool {
        let since = now - std::mem::replace(&mut self.entered, now);
        let usual = self.conditions.rate.map_or(since, |rate| rate.time(USUAL)).as_nanos().max(1);
        let times = u32::try_from(since.as_nanos() / usual).unwrap_or(u32::MAX).max(1);
        self.dice.loses(self.conditions.loss, times)
    }

    /// Returns the next frame that is due by now.
    pub fn due(&mut self, now: Duration) -> Option<Frame> {
        self.advance(now);
        self.flying.front().filter(|(arrives, _)| *arrives <= now)?;
        let (arrives, frame) = self.flying.pop_front()?;
        self.counts.late += u64::from(now - arrives > LATE);
        Some(frame)
    }

    /// Returns when the next frame is due. The frame on the link counts as in flight, so a waiting frame is never the
    /// next.
    pub fn next(&self) -> Option<Duration> {
        self.flying.front().map(|(arrives, _)| *arrives)
    }

    /// Changes the conditions. They also apply to frames that wait for the link, but not to those in flight.
    pub fn set(&mut self, now: Duration, conditions: Conditions) {
        self.advance(now);
        self.conditions = conditions;
    }

    /// Drops everything queued or in flight, and everything that enters until [`Channel::mend`].
    pub fn cut(&mut self) {
        self.counts.cut += (self.waiting.len() + self.flying.len()) as u64;
        self.waiting.clear();
        self.flying.clear();
        (self.queued, self.sending, self.free) = (0, 0, Duration::ZERO);
        self.cut = true;
    }

    /// Ends a cut.
    pub fn mend(&mut self) {
        self.cut = false;
    }

    /// Sends the waiting frames for which the link has had time.
    fn advance(&mut self, now: Duration) {
        while self.free <= now {
            self.queued -= std::mem::take(&mut self.sending);
            let Some((came, frame)) = self.waiting.pop_front() else { break };
            let busy = self.conditions.rate.map_or(Duration::ZERO, |rate| rate.time(frame.len()));
            self.free = self.free.max(came) + busy;
            self.sending = frame.len();
            // Frames stay in order even when the delay becomes shorter.
            let last = self.flying.back().map_or(Duration::ZERO, |(arrives, _)| *arrives);
            self.flying.push_back((last.max(self.free + self.conditions.delay), frame));
        }
    }
}

/// Returns whether a frame is broadcast or multicast. Hosts send such frames on their own, at unpredictable times. They
/// are never lost: otherwise the same seed would not lose the same frames of the test's own traffic.
fn is_for_many(frame: &Frame) -> bool {
    frame.first().is_some_and(|byte| byte & 1 == 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wan::{Loss, Rate};

    /// 8 Mbit/s: a byte takes a microsecond.
    const SLOW: Conditions = Conditions {
        loss: Loss::None,
        rate: Some(Rate::mbit(8)),
        queue: 5000,
        delay: Duration::from_millis(50),
    };

    fn at(micros: u64) -> Duration {
        Duration::from_micros(micros)
    }

    /// Returns when each frame arrives, with its first byte.
    fn arrivals(channel: &mut Channel) -> Vec<(u64, u8)> {
        let mut all = Vec::new();
        while let Some(moment) = channel.next() {
            let frame = channel.due(moment).expect("it said so");
            all.push((u64::try_from(moment.as_micros()).expect("soon"), frame[0]));
        }
        all
    }

    #[test]
    fn frames_are_sent_one_after_another_and_then_delayed() {
        let mut channel = Channel::new(SLOW, 1);
        channel.offer(at(0), vec![0; 1000]);
        channel.offer(at(0), vec![1; 500]);
        channel.offer(at(9000), vec![2; 100]);
        assert!(channel.due(at(50_999)).is_none());
        assert_eq!(arrivals(&mut channel), [(51_000, 0), (51_500, 1), (59_100, 2)]);
    }

    #[test]
    fn late_polling_changes_nothing() {
        let mut channel = Channel::new(SLOW, 1);
        for n in 0..5 {
            channel.offer(at(0), vec![n; 1000]);
        }
        assert_eq!(channel.due(at(54_500)).map(|frame| frame[0]), Some(0));
        let rest: Vec<_> = std::iter::from_fn(|| channel.due(at(54_500))).map(|frame| frame[0]).collect();
        assert_eq!((rest, channel.next()), (vec![1, 2, 3], Some(at(55_000))));
        assert_eq!(channel.counts.late, 3);
    }

    #[test]
    fn frames_that_do_not_fit_into_the_queue_are_dropped_until_there_is_room() {
        let mut channel = Channel::new(SLOW, 1);
        for n in 0..7 {
            channel.offer(at(0), vec![n; 1000]);
        }
        assert_eq!(channel.counts.overflowed, 2);
        channel.offer(at(999), vec![7; 1000]);
        channel.offer(at(1000), vec![8; 1000]);
        assert_eq!(channel.counts.overflowed, 3);
        let came: Vec<_> = arrivals(&mut channel).into_iter().map(|(_, n)| n).collect();
        assert_eq!(came, [0, 1, 2, 3, 4, 8]);
    }

    #[test]
    fn waiting_frames_take_the_new_rate_and_keep_their_order() {
        let mut channel = Channel::new(SLOW, 1);
        channel.offer(at(0), vec![0; 1000]);
        channel.offer(at(0), vec![1; 1000]);
        channel.set(at(10), Conditions { rate: Some(Rate::mbit(80)), delay: Duration::ZERO, ..SLOW });
        // The second frame is sent after 1.1 ms and has no delay, but the first is still in flight.
        assert_eq!(arrivals(&mut channel), [(51_000, 0), (51_000, 1)]);
        channel.offer(at(60_000), vec![2; 1000]);
        assert_eq!(arrivals(&mut channel), [(60_100, 2)]);
    }

    #[test]
    fn without_a_rate_only_the_delay_is_left() {
        let mut channel = Channel::new(Conditions { rate: None, ..SLOW }, 1);
        for n in 0..20 {
            channel.offer(at(0), vec![n; 1000]);
        }
        assert!(arrivals(&mut channel).into_iter().eq((0..20).map(|n| (50_000, n))));
    }

    #[test]
    fn a_cut_drops_frames_in_flight_and_new_ones_until_it_is_mended() {
        let mut channel = Channel::new(SLOW, 1);
        for n in 0..3 {
            channel.offer(at(0), vec![n; 1000]);
        }
        channel.cut();
        channel.offer(at(10), vec![3; 1000]);
        channel.mend();
        channel.offer(at(20), vec![4; 1000]);
        assert_eq!(arrivals(&mut channel), [(51_020, 4)]);
        assert_eq!(channel.counts.cut, 4);
    }

    #[test]
    fn lost_frames_take_no_room_in_the_queue() {
        let mut channel = Channel::new(Conditions { loss: Loss::Random(0.5), queue: 50_000, ..SLOW }, 1);
        for _ in 0..80 {
            channel.offer(at(0), vec![0; 1000]);
        }
        assert_eq!(channel.counts.overflowed, 0, "{:?}", channel.counts);
        assert_eq!(arrivals(&mut channel).len() as u64, 80 - channel.counts.lost);
    }

    #[test]
    fn a_lossy_channel_keeps_changing_in_a_pause() {
        let conditions = Conditions { loss: Loss::bursts(0.5, 1000.0), ..SLOW };
        let lost_after_lost = |pause| {
            let mut channel = Channel::new(conditions, 1);
            let fates = (0..10_000_u64).map(|n| {
                let before = channel.counts.lost;
                channel.offer(at(n * pause), vec![0; 100]);
                channel.counts.lost > before
            });
            let fates: Vec<_> = fates.collect();
            let pairs = fates.windows(2).filter(|two| two[0]);
            pairs.clone().filter(|two| two[1]).count() as f64 / pairs.count() as f64
        };
        assert!(lost_after_lost(100) > 0.99);
        // In three seconds, 2000 frames of 1500 bytes would have been sent.
        assert!((0.4..0.6).contains(&lost_after_lost(3_000_000)));
    }

    #[test]
    fn multicast_is_not_lost_and_keeps_the_sequence_in_step() {
        let conditions = Conditions { loss: Loss::Random(0.5), queue: 1 << 20, ..SLOW };
        let arrived = |frames: &[u8]| {
            let mut channel = Channel::new(conditions, 1);
            frames.iter().for_each(|first| channel.offer(at(0), vec![*first; 100]));
            arrivals(&mut channel).into_iter().map(|(_, first)| first).collect::<Vec<_>>()
        };
        let alone: Vec<u8> = (0..100).step_by(2).collect();
        let mixed: Vec<u8> = (0..100).collect();
        let (alone, mixed) = (arrived(&alone), arrived(&mixed));
        assert!(alone.iter().eq(mixed.iter().filter(|first| *first % 2 == 0)));
        assert_eq!(mixed.iter().filter(|first| *first % 2 == 1).count(), 50);
    }
}
