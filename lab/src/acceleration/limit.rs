//! The physical limit: the shortest possible time of an object over a WAN, independent of the protocol.
use std::time::Duration;

use super::results::Object;
use crate::wan::{Conditions, Profile};

/// The payload share of a frame: 1448 of 1514 bytes, with timestamps.
const PAYLOAD: f64 = 1448.0 / 1514.0;

/// Returns the shortest round trip of the paths plus the payload's time at the summed rate of all paths in its
/// direction.
pub fn limit(profile: &Profile, object: Object) -> Duration {
    let round_trip = profile.paths.iter().map(|path| path.to_server.delay + path.to_client.delay).min();
    let direction: fn(&crate::wan::Link) -> &Conditions = match object {
        Object::Up(_) => |path| &path.to_server,
        _ => |path| &path.to_client,
    };
    let rate: u64 =
        profile.paths.iter().filter_map(|path| direction(path).rate).map(|rate| rate.bits()).sum();
    let sending = object.bytes() as f64 * 8.0 / (rate.max(1) as f64 * PAYLOAD);
    round_trip.unwrap_or_default() + Duration::from_secs_f64(sending)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_is_a_round_trip_and_the_payload_at_the_rate_of_all_paths() {
        let of = |profile: Profile, object| limit(&profile, object).as_millis();
        assert_eq!(of(Profile::clean(), Object::FirstByte), 100);
        assert_eq!(of(Profile::clean(), Object::Down(20_000_000)), 1772);
        assert_eq!(of(Profile::satellite(), Object::Up(20_000_000)), 8964);
        assert_eq!(of(Profile::bonded(), Object::Down(20_000_000)), 1135);
    }
}
