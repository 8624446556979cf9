//! Options of the lab's commands: words like `ROUNDS=3`. An unknown word is an error; it is never ignored.
use std::fmt::Display;
use std::str::FromStr;

/// Calls `set` with the key and the value of each word. An empty value keeps the default.
///
/// # Errors
/// The first word that is not one of `known`, or whose value `set` rejects. The message names the allowed values.
pub fn read(
    words: impl IntoIterator<Item = String>,
    known: &[&str],
    mut set: impl FnMut(&str, &str) -> Result<(), String>,
) -> Result<(), String> {
    for word in words {
        let option = word.split_once('=').filter(|(key, _)| known.contains(key));
        let (key, value) = option.ok_or_else(|| unknown(&word, known))?;
        if !value.is_empty() {
            set(key, value).map_err(|expected| format!("{word}: expected {expected}"))?;
        }
    }
    Ok(())
}

/// Parses a number between `least` and `most`.
///
/// # Errors
/// The text is not a number or is out of range. The message names the allowed range.
pub fn number<T: FromStr + PartialOrd + Display>(text: &str, least: T, most: T) -> Result<T, String> {
    let number = text.parse().ok().filter(|number| (&least..=&most).contains(&number));
    number.ok_or_else(|| format!("a number from {least} to {most}"))
}

fn unknown(word: &str, known: &[&str]) -> String {
    let known: Vec<_> = known.iter().map(|key| format!("{key}=")).collect();
    format!("{word}: unknown option; known are {}", known.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn times(words: &[&str]) -> Result<usize, String> {
        let mut times = 100;
        read(words.iter().map(|word| (*word).to_owned()), &["TIMES", "OUT"], |_, value| {
            times = number(value, 1, 1000)?;
            Ok(())
        })?;
        Ok(times)
    }

    #[test]
    fn an_empty_value_leaves_the_default() {
        assert_eq!(
            (times(&[]), times(&["TIMES="]), times(&["TIMES=", "TIMES=7"])),
            (Ok(100), Ok(100), Ok(7))
        );
    }

    #[test]
    fn an_invalid_word_is_rejected() {
        for word in ["TIMES=ten", "TIMES=0", "TIMES=1001", "TIMES=1.5", "TIMES=-1", "TIMES= 7"] {
            assert_eq!(times(&[word]), Err(format!("{word}: expected a number from 1 to 1000")));
        }
        for word in ["TIME=7", "TIME=", "times=7", "7", "TIMES", "=7", ""] {
            assert_eq!(times(&[word]), Err(format!("{word}: unknown option; known are TIMES=, OUT=")));
        }
    }

    #[test]
    fn nan_is_rejected() {
        assert!(number("NaN", 0.1, 600.0).is_err());
        assert!(number("inf", 0.1, 600.0).is_err());
    }
}
