//! The loss model: decides which frames are lost.
use crate::stream::Random;

/// How frames get lost. Each number is a probability between 0 and 1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Loss {
    /// No frame is lost.
    None,
    /// Each frame is lost with this probability, independent of the previous one.
    Random(f64),
    /// The Gilbert-Elliott channel: it is good or bad, and may change before each frame. While nothing is sent, it
    /// keeps changing once per transmission time of a frame. A lone retransmission therefore does not find the bad
    /// channel of a second ago.
    Bursty {
        /// The probability that a good channel turns bad.
        turns_bad: f64,
        /// The probability that a bad channel turns good.
        turns_good: f64,
        /// The probability that a good channel loses a frame.
        in_good: f64,
        /// The probability that a bad channel loses a frame.
        in_bad: f64,
    },
}

impl Loss {
    /// Loses this share of all frames, in bursts with a mean length of `length` frames. During a burst every frame is
    /// lost.
    pub const fn bursts(share: f64, length: f64) -> Self {
        let turns_good = 1.0 / length;
        let turns_bad = turns_good * share / (1.0 - share);
        Self::Bursty { turns_bad, turns_good, in_good: 0.0, in_bad: 1.0 }
    }
}

/// Decides the fate of one frame after another. The same seed gives the same sequence.
#[derive(Debug)]
pub(super) struct Dice {
    random: Random,
    bad: bool,
}

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self { random: Random::new(seed), bad: false }
    }

    /// Returns whether the next frame is lost. `times` is its distance from the previous frame, in transmission times
    /// of a frame. Every frame draws two numbers, so a change of conditions keeps the sequence in step.
    pub fn loses(&mut self, loss: Loss, times: u32) -> bool {
        let (turn, fate) = (self.draw(), self.draw());
        match loss {
            Loss::None => false,
            Loss::Random(share) => fate < share,
            Loss::Bursty { turns_bad, turns_good, in_good, in_bad } => {
                // The distribution of a two-state Markov chain after `times` steps.
                let bad_share = turns_bad / (turns_bad + turns_good);
                let distance = if self.bad { 1.0 - bad_share } else { -bad_share };
                let memory = (1.0 - turns_bad - turns_good).powf(times.into());
                self.bad = turn < bad_share + distance * memory;
                fate < if self.bad { in_bad } else { in_good }
            }
        }
    }

    /// Returns a number from 0 to below 1, with the 53 bits of precision of an `f64`.
    fn draw(&mut self) -> f64 {
        (self.random.next() >> 11) as f64 / (1_u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FRAMES: usize = 1_000_000;

    fn fates(seed: u64, loss: Loss) -> Vec<bool> {
        let mut dice = Dice::new(seed);
        (0..FRAMES).map(|_| dice.loses(loss, 1)).collect()
    }

    fn share(fates: &[bool]) -> f64 {
        fates.iter().filter(|lost| **lost).count() as f64 / fates.len() as f64
    }

    /// Returns the mean number of frames in a burst.
    fn burst(fates: &[bool]) -> f64 {
        let lost = fates.iter().filter(|lost| **lost).count();
        let ends = fates.windows(2).filter(|two| two[0] && !two[1]).count();
        lost as f64 / ends as f64
    }

    #[test]
    fn random_loss_has_its_share_and_no_memory() {
        let fates = fates(7, Loss::Random(0.01));
        assert!((share(&fates) - 0.01).abs() < 0.0005, "{}", share(&fates));
        assert!((burst(&fates) - 1.01).abs() < 0.01, "{}", burst(&fates));
    }

    #[test]
    fn bursts_have_their_share_and_their_length() {
        let fates = fates(7, Loss::bursts(0.01, 5.0));
        assert!((share(&fates) - 0.01).abs() < 0.001, "{}", share(&fates));
        assert!((burst(&fates) - 5.0).abs() < 0.25, "{}", burst(&fates));
    }

    #[test]
    fn a_bad_channel_may_let_frames_through_and_a_good_one_lose_some() {
        let loss = Loss::Bursty { turns_bad: 0.1, turns_good: 0.3, in_good: 0.02, in_bad: 0.5 };
        // The channel is bad for a quarter of the time: 0.75 * 0.02 + 0.25 * 0.5.
        let share = share(&fates(7, loss));
        assert!((share - 0.14).abs() < 0.003, "{share}");
    }

    #[test]
    fn a_bad_channel_is_forgotten_in_a_pause() {
        let mut dice = Dice::new(7);
        let loss = Loss::bursts(0.1, 50.0);
        let fates: Vec<_> = (0..FRAMES).map(|_| dice.loses(loss, 1000)).collect();
        assert!((share(&fates) - 0.1).abs() < 0.001, "{}", share(&fates));
        assert!((burst(&fates) - 1.0 / 0.9).abs() < 0.01, "{}", burst(&fates));
    }

    #[test]
    fn a_seed_gives_the_same_fates_again_and_another_seed_gives_others() {
        let loss = Loss::Random(0.3);
        assert_eq!(fates(3, loss), fates(3, loss));
        assert_ne!(fates(3, loss), fates(4, loss));
    }
}
