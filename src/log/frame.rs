//! The encoding of lines and orders in the pipe to the log writer. PURE.
//!
//! A frame is a tag, a text and a zero byte. Frames have an end mark and no length. So a new log writer can
//! resynchronise after the previous one was killed in the middle of a frame.

/// Length of the longest frame in bytes: writes of up to PIPE_BUF bytes to a pipe are atomic (pipe(7)).
pub const LONGEST: usize = 4096;
/// The end of a line that was cut.
const CUT: &[u8] = b" ... (cut)";
const END: u8 = 0;
/// The tag of a line is its priority plus one.
const LAST_PRIORITY: u8 = 7;
const REOPEN: u8 = 0x10;
const LEAVE_TERMINAL: u8 = 0x11;

/// A message to the log writer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Frame<'a> {
    /// A line, without a line feed at its end, with its priority as in syslog(3).
    Line { priority: u8, text: &'a [u8] },
    /// Reopen the log file.
    Reopen,
    /// Release standard error.
    LeaveTerminal,
}

impl<'a> Frame<'a> {
    /// Encodes the frame in at most [`LONGEST`] bytes. A longer line is cut, and a zero byte in it becomes a question
    /// mark.
    pub fn encode(&self) -> Vec<u8> {
        match *self {
            Self::Line { priority, text } => {
                let mut frame = Vec::with_capacity(LONGEST.min(text.len() + 2));
                frame.push(priority.min(LAST_PRIORITY) + 1);
                if text.len() + 2 <= LONGEST {
                    frame.extend_from_slice(text);
                } else {
                    frame.extend_from_slice(at_most(text, LONGEST - 2 - CUT.len()));
                    frame.extend_from_slice(CUT);
                }
                frame.iter_mut().filter(|byte| **byte == END).for_each(|byte| *byte = b'?');
                frame.push(END);
                frame
            }
            Self::Reopen => vec![REOPEN, END],
            Self::LeaveTerminal => vec![LEAVE_TERMINAL, END],
        }
    }

    /// Decodes `bytes`, without the end mark. Bytes without a tag are the rest of a line whose beginning the previous
    /// log writer has read.
    fn decode(bytes: &'a [u8]) -> Self {
        match bytes {
            [REOPEN] => Self::Reopen,
            [LEAVE_TERMINAL] => Self::LeaveTerminal,
            [tag, text @ ..] if (1..=LAST_PRIORITY + 1).contains(tag) => {
                Self::Line { priority: tag - 1, text }
            }
            text => Self::Line { priority: 6, text },
        }
    }
}

/// Returns the first `len` bytes of `text`, or fewer to avoid cutting a UTF-8 character.
fn at_most(text: &[u8], mut len: usize) -> &[u8] {
    while len > 0 && text[len] & 0xC0 == 0x80 {
        len -= 1;
    }
    &text[..len]
}

/// Assembles frames from the bytes that are read from the pipe.
#[derive(Debug, Default)]
pub struct Decoder {
    rest: Vec<u8>,
}

impl Decoder {
    /// Appends `bytes`, and passes each frame that is now complete to `take`.
    pub fn feed(&mut self, bytes: &[u8], mut take: impl FnMut(Frame<'_>)) {
        self.rest.extend_from_slice(bytes);
        let mut begin = 0;
        while let Some(len) = self.rest[begin..].iter().position(|&byte| byte == END) {
            take(Frame::decode(&self.rest[begin..begin + len]));
            begin += len + 1;
        }
        self.rest.drain(..begin);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: &str) -> Frame<'_> {
        Frame::Line { priority: 3, text: text.as_bytes() }
    }

    #[test]
    fn frames_are_read_as_they_were_written_however_the_pipe_divides_them() {
        let frames = [line("one"), Frame::Reopen, line(""), line("two\nlines"), Frame::LeaveTerminal];
        let bytes: Vec<u8> = frames.iter().flat_map(Frame::encode).collect();
        for size in 1..=bytes.len() {
            let mut decoder = Decoder::default();
            let mut found = Vec::new();
            bytes.chunks(size).for_each(|chunk| decoder.feed(chunk, |frame| found.push(frame.encode())));
            assert_eq!(found, frames.iter().map(Frame::encode).collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_line_that_is_too_long_is_cut_between_two_characters_and_marked() {
        let longest = "x".repeat(LONGEST - 2);
        assert!(line(&longest).encode().ends_with(b"xx\0"));
        for text in [longest + "x", "xä€".repeat(LONGEST), "äx€".repeat(LONGEST)] {
            let frame = line(&text).encode();
            assert!(frame.len() <= LONGEST && frame.len() > LONGEST - 4, "{}", frame.len());
            let said = str::from_utf8(&frame[1..frame.len() - 1]).unwrap();
            assert!(text.starts_with(said.strip_suffix(" ... (cut)").unwrap()));
        }
    }

    #[test]
    fn a_decoder_that_begins_inside_a_frame_is_in_step_with_the_next_one() {
        let bytes = [line("first line").encode(), line("second line").encode()].concat();
        let mut found = Vec::new();
        Decoder::default().feed(&bytes[6..], |frame| found.push(frame.encode()));
        assert_eq!(
            found,
            [Frame::Line { priority: 6, text: b" line" }.encode(), line("second line").encode()]
        );
    }

    #[test]
    fn a_zero_byte_in_a_line_does_not_end_it() {
        assert_eq!(line("a\0b").encode(), line("a?b").encode());
    }
}
