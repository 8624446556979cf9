//! A description of the paths of a WAN in words and numbers.
use super::plot::number;
use crate::acceleration::results::Object;
use crate::acceleration::units;
use crate::wan::{Conditions, Link, Loss, Profile, Rate};

/// The frame of a full segment, in bits.
const FRAME: f64 = 1514.0 * 8.0;

/// Returns one sentence per path.
pub fn sentences(profile: &Profile) -> String {
    match profile.paths.as_slice() {
        [] => String::new(),
        [link] => capital(&path(link)),
        links => {
            let numbered = links.iter().zip(1..).map(|(link, nth)| format!("Path {nth}: {}", path(link)));
            numbered.chain(["Only a pair uses more than path 1.".to_owned()]).collect::<Vec<_>>().join(" ")
        }
    }
}

fn path(Link { to_server, to_client }: &Link) -> String {
    let round_trip = units::time(to_server.delay + to_client.delay);
    let [rate, loss] = [rate, loss].map(|of| both(of(to_client), of(to_server)));
    format!("{round_trip} round trip, {rate}, {loss}.")
}

/// Returns the text once if it is the same in both directions.
fn both(down: String, up: String) -> String {
    if down == up { down } else { format!("{down} down and {up} up") }
}

fn rate(conditions: &Conditions) -> String {
    conditions.rate.map_or_else(|| "any rate".to_owned(), |rate| units::rate(rate.bits() as f64))
}

fn loss(conditions: &Conditions) -> String {
    match conditions.loss {
        Loss::None => "no loss but that of a full queue".to_owned(),
        Loss::Random(share) => format!("{} of the frames lost", units::percent(share)),
        Loss::Bursty { turns_bad, turns_good, in_good, in_bad } => {
            let bad = turns_bad / (turns_bad + turns_good).max(f64::MIN_POSITIVE);
            let share = units::percent(bad * in_bad + (1.0 - bad) * in_good);
            format!(
                "{share} of the frames lost, in bursts of {} in the mean",
                number(1.0 / turns_good.max(1e-9))
            )
        }
    }
}

fn capital(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}

/// Returns the summed rate of all paths in the direction of `object`, in Mbit/s; `None` if a path has no rate limit.
pub(super) fn mbit(profile: &Profile, object: Object) -> Option<f64> {
    let direction =
        |link: &Link| if matches!(object, Object::Up(_)) { link.to_server } else { link.to_client };
    let rates: Option<Vec<_>> =
        profile.paths.iter().map(|link| direction(link).rate.map(Rate::bits)).collect();
    rates.filter(|rates| !rates.is_empty()).map(|rates| rates.iter().sum::<u64>() as f64 / 1e6)
}

/// Returns the shortest round trip of the paths, in milliseconds.
pub(super) fn round_trip_ms(profile: &Profile) -> Option<f64> {
    let round_trips = profile.paths.iter().map(|link| link.to_server.delay + link.to_client.delay);
    round_trips.min().map(|time| time.as_secs_f64() * 1e3)
}

/// Returns how many segments in flight fill the path, if there is only one.
pub(super) fn full_window(profile: &Profile, object: Object) -> Option<f64> {
    let [_] = profile.paths.as_slice() else { return None };
    Some(mbit(profile, object)? * 1e3 * round_trip_ms(profile)? / FRAME)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sentence_a_path() {
        let of = |profile: Profile| sentences(&profile);
        assert_eq!(of(Profile::transatlantic()), "100 ms round trip, 100 Mbit/s, 1 % of the frames lost.");
        let lte = "60 ms round trip, 40 Mbit/s, 1 % of the frames lost, in bursts of 5 in the mean.";
        assert_eq!(of(Profile::lte()), lte);
        assert!(of(Profile::bonded()).contains("Path 2: 50 ms round trip, 50 Mbit/s, no loss"));
    }

    #[test]
    fn what_fills_a_path() {
        assert_eq!(full_window(&Profile::clean(), Object::Down(1)).map(f64::round), Some(826.0));
        assert_eq!(full_window(&Profile::bonded(), Object::Down(1)), None);
        let nowhere = Profile { name: "nowhere", paths: Vec::new(), seed: 1 };
        assert_eq!((sentences(&nowhere).as_str(), mbit(&nowhere, Object::Up(1))), ("", None));
    }
}
