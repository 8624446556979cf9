//! One direction of a session as a state machine: it is told the result of each step and returns the next one. PURE:
//! no descriptor, no clock.
use std::num::NonZeroUsize;

/// The result of a splice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moved {
    /// This number of bytes was moved.
    Bytes(NonZeroUsize),
    /// The source's FIN was reached: no data follows.
    Eof,
    /// Nothing to read, or no room to write.
    NotReady,
}

/// The next step of a direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Move bytes from the source into the empty pipe.
    Fill,
    /// Move this number of bytes from the pipe to the sink.
    Drain(NonZeroUsize),
    /// Pass the FIN on: shut the sink's write side.
    Shut,
    /// Nothing: the direction has ended.
    Done,
}

/// The state of a direction: plain values, so that another process can resume it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DirectionState {
    in_pipe: usize,
    stage: Stage,
    passed_on: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Stage {
    #[default]
    Open,
    SourceEnded,
    SinkShut,
}

impl DirectionState {
    /// Resumes a direction that another process left with `in_pipe` bytes in its pipe, after `passed_on` bytes that
    /// the sink has taken. The state does not record an EOF: a source at its end reads as EOF again.
    pub const fn resume(in_pipe: usize, passed_on: u64) -> Self {
        Self { in_pipe, stage: Stage::Open, passed_on }
    }

    /// Returns the next step. The pipe is drained before anything else is read, and the FIN follows the last byte.
    pub fn step(&self) -> Step {
        match (NonZeroUsize::new(self.in_pipe), self.stage) {
            (Some(len), _) => Step::Drain(len),
            (None, Stage::Open) => Step::Fill,
            (None, Stage::SourceEnded) => Step::Shut,
            (None, Stage::SinkShut) => Step::Done,
        }
    }

    /// Records the result of a [`Step::Fill`].
    pub fn filled(&mut self, moved: Moved) {
        match moved {
            Moved::Bytes(n) => self.in_pipe += n.get(),
            Moved::Eof => self.stage = Stage::SourceEnded,
            Moved::NotReady => {}
        }
    }

    /// Records that a [`Step::Drain`] moved `n` bytes.
    pub fn drained(&mut self, n: NonZeroUsize) {
        // The kernel moves no more than was requested. If it ever reports more, the pipe counts as empty.
        self.in_pipe = self.in_pipe.saturating_sub(n.get());
        self.passed_on += n.get() as u64;
    }

    /// Records that one urgent byte was passed on without the pipe, which was empty.
    pub fn passed_urgent(&mut self) {
        self.passed_on += 1;
    }

    /// Records that the sink's write side is shut.
    pub fn shut(&mut self) {
        self.stage = Stage::SinkShut;
    }

    /// Returns whether the source's FIN has been read.
    pub fn source_ended(&self) -> bool {
        self.stage != Stage::Open
    }

    /// Returns the number of bytes in the pipe.
    pub fn in_pipe(&self) -> usize {
        self.in_pipe
    }

    /// Returns the number of payload bytes that the sink's kernel has taken.
    pub fn passed_on(&self) -> u64 {
        self.passed_on
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::VecDeque;

    fn bytes(n: usize) -> Moved {
        NonZeroUsize::new(n).map_or(Moved::NotReady, Moved::Bytes)
    }

    #[test]
    fn eof_behind_a_full_pipe_drains_before_it_shuts_the_write_side() {
        let mut half = DirectionState::default();
        half.filled(bytes(10));
        half.filled(Moved::Eof);
        assert_eq!(half.step(), Step::Drain(NonZeroUsize::new(10).unwrap()));
        half.drained(NonZeroUsize::new(4).unwrap());
        assert_eq!(half.step(), Step::Drain(NonZeroUsize::new(6).unwrap()));
        half.drained(NonZeroUsize::new(6).unwrap());
        assert_eq!(half.step(), Step::Shut);
        half.shut();
        assert_eq!((half.step(), half.passed_on()), (Step::Done, 10));
    }

    #[test]
    fn a_direction_taken_over_empties_its_pipe_first() {
        let half = DirectionState::resume(7, 100);
        assert_eq!((half.step(), half.passed_on()), (Step::Drain(NonZeroUsize::new(7).unwrap()), 100));
    }

    /// The naive model: a source as a list of bytes and a FIN, a pipe, and the bytes that the sink has received.
    #[derive(Default)]
    struct Model {
        source: VecDeque<u32>,
        fin: bool,
        pipe: VecDeque<u32>,
        sink: Vec<u32>,
        shut: bool,
    }

    #[derive(Debug, Clone)]
    enum Op {
        Arrive(u8),
        Fin,
        Turn { readable: u8, writable: u8 },
        TakeOver,
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            3 => any::<u8>().prop_map(Op::Arrive),
            1 => Just(Op::Fin),
            6 => (any::<u8>(), any::<u8>()).prop_map(|(readable, writable)| Op::Turn { readable, writable }),
            1 => Just(Op::TakeOver),
        ]
    }

    impl Model {
        /// Executes the next step of `half` with the readiness that the arguments allow.
        fn turn(&mut self, half: &mut DirectionState, readable: usize, writable: usize) {
            match half.step() {
                Step::Fill => {
                    assert!(self.pipe.is_empty(), "filled a pipe that was not empty");
                    let n = readable.min(self.source.len());
                    if n == 0 && self.source.is_empty() && self.fin {
                        half.filled(Moved::Eof);
                    } else {
                        self.pipe.extend(self.source.drain(..n));
                        half.filled(bytes(n));
                    }
                }
                Step::Drain(len) => {
                    assert_eq!(len.get(), self.pipe.len());
                    let n = writable.min(len.get());
                    self.sink.extend(self.pipe.drain(..n));
                    if let Some(n) = NonZeroUsize::new(n) {
                        half.drained(n);
                    }
                }
                Step::Shut => {
                    assert!(
                        self.fin && self.source.is_empty() && self.pipe.is_empty(),
                        "FIN before the last byte"
                    );
                    self.shut = true;
                    half.shut();
                }
                Step::Done => assert!(self.shut),
            }
        }
    }

    proptest! {
        #[test]
        fn every_byte_arrives_once_and_in_order_before_the_fin(ops in proptest::collection::vec(op(), 0..200)) {
            let (mut model, mut half, mut sent) = (Model::default(), DirectionState::default(), 0_u32);
            for op in ops {
                match op {
                    Op::Arrive(n) if !model.fin => {
                        model.source.extend(sent..sent + u32::from(n));
                        sent += u32::from(n);
                    }
                    Op::Arrive(_) => {}
                    Op::Fin => model.fin = true,
                    Op::Turn { readable, writable } => model.turn(&mut half, readable.into(), writable.into()),
                    Op::TakeOver if !model.shut => half = DirectionState::resume(model.pipe.len(), model.sink.len() as u64),
                    Op::TakeOver => {}
                }
            }
            model.fin = true;
            while half.step() != Step::Done {
                model.turn(&mut half, 3, 2);
            }
            prop_assert_eq!(&model.sink, &(0..sent).collect::<Vec<_>>());
            prop_assert_eq!(half.passed_on(), u64::from(sent));
        }
    }
}
