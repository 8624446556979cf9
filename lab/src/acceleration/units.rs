//! Formatting of numbers for people.
use std::time::Duration;

/// Formats a time: milliseconds below a second, seconds below ten minutes.
pub(super) fn time(time: Duration) -> String {
    let seconds = time.as_secs_f64();
    match seconds {
        ..0.0095 => format!("{:.1} ms", seconds * 1e3),
        ..0.9995 => format!("{:.0} ms", seconds * 1e3),
        ..9.95 => format!("{seconds:.1} s"),
        ..600.0 => format!("{seconds:.0} s"),
        ..6000.0 => format!("{:.0} min", seconds / 60.0),
        _ => format!("{:.0} h", seconds / 3600.0),
    }
}

/// Formats a rate that is given in bits per second.
pub(super) fn rate(bits: f64) -> String {
    match bits {
        ..99_500.0 => format!("{:.0} kbit/s", bits / 1e3),
        ..9_950_000.0 => format!("{:.1} Mbit/s", bits / 1e6),
        _ => format!("{:.0} Mbit/s", bits / 1e6),
    }
}

/// Formats a factor with two digits.
pub(super) fn times(times: f64) -> String {
    match times {
        ..0.095 => format!("{times:.2}"),
        ..9.95 => format!("{times:.1}"),
        _ => format!("{times:.0}"),
    }
}

/// Formats a share of 1 in per cent.
pub(super) fn percent(share: f64) -> String {
    match share * 100.0 {
        percent @ ..0.995 => format!("{} %", (percent * 100.0).round() / 100.0),
        percent @ ..1.95 => format!("{} %", (percent * 10.0).round() / 10.0),
        percent => format!("{percent:.0} %"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_that_matter() {
        let of = |seconds| time(Duration::from_secs_f64(seconds));
        let seconds = [0.0042, 0.1004, 0.9996, 2.13, 9.96, 114.2, 700.0, 9e5];
        assert_eq!(
            seconds.map(of),
            ["4.2 ms", "100 ms", "1.0 s", "2.1 s", "10 s", "114 s", "12 min", "250 h"]
        );
        assert_eq!(
            [2e4, 1.4e6, 9.96e6, 1e8].map(rate),
            ["20 kbit/s", "1.4 Mbit/s", "10 Mbit/s", "100 Mbit/s"]
        );
        assert_eq!([0.04, 0.96, 54.2].map(times), ["0.04", "1.0", "54"]);
        assert_eq!([0.0, 0.005, 0.01, 0.0155, 0.84].map(percent), ["0 %", "0.5 %", "1 %", "1.6 %", "84 %"]);
    }
}
