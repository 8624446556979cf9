//! Drawings of the three ways: the hosts, and the connections between them.
use super::class;
use crate::acceleration::results::Way;

/// The horizontal positions of the hosts.
const CLIENT: f64 = 28.0;
const NEAR: f64 = 108.0;
const FAR: f64 = 252.0;
const SERVER: f64 = 332.0;
/// Half the width of a host.
const HALF: f64 = 27.0;

/// Draws one way.
pub(super) fn drawing(way: Way) -> String {
    let runs = match way {
        Way::EndToEnd => [false, false],
        Way::OneBox => [true, false],
        Way::Pair => [true, true],
    };
    let mut svg = format!(
        "<line class='cable' x1='{CLIENT}' x2='{NEAR}' y1='24' y2='24'/>\n\
         <line class='cable' x1='{FAR}' x2='{SERVER}' y1='24' y2='24'/>\n\
         <line class='wan' x1='{NEAR}' x2='{FAR}' y1='24' y2='24'/>\n\
         <text class='middle ink' x='{}' y='17'>WAN</text>\n",
        f64::midpoint(NEAR, FAR)
    );
    svg += &host("client", CLIENT, false);
    svg += &host(name(runs[0]), NEAR, runs[0]);
    svg += &host(name(runs[1]), FAR, runs[1]);
    svg += &host("server", SERVER, false);
    let ends = [(true, CLIENT), (runs[0], NEAR), (runs[1], FAR), (true, SERVER)];
    let ends: Vec<_> = ends.into_iter().filter_map(|(is_end, x)| is_end.then_some(x)).collect();
    svg += &ends.windows(2).map(|ends| bracket(ends[0], ends[1])).collect::<String>();
    let class = class(way);
    format!(
        "<figure class='{class}'><svg class='drawing' viewBox='0 0 360 64' role='img' aria-label='{way}'>\n{svg}</svg>\n\
         <figcaption><b class='way {class}'>{way}</b>: {}</figcaption></figure>\n",
        text(way)
    )
}

const fn name(runs: bool) -> &'static str {
    if runs { "box" } else { "router" }
}

const fn text(way: Way) -> &'static str {
    match way {
        Way::EndToEnd => "the boxes only route. One connection, from the client to the server.",
        Way::OneBox => {
            "tcp-intercept on the box near the client. It ends the client's connection, and has its own over the WAN to \
             the server."
        }
        Way::Pair => {
            "tcp-intercept on both boxes. Each side has its own connection, and the boxes have one between them over the WAN."
        }
    }
}

fn host(name: &str, x: f64, runs: bool) -> String {
    let (class, inside) = if runs { ("runs", "inside") } else { ("host", "ink") };
    format!(
        "<rect class='{class}' x='{}' y='12' width='{}' height='24' rx='4'/>\n\
         <text class='middle {inside}' x='{x}' y='28'>{name}</text>\n",
        x - HALF,
        2.0 * HALF
    )
}

/// Draws the bracket of a connection below its ends.
fn bracket(from: f64, to: f64) -> String {
    format!("<path class='bracket' d='M{} 44v8H{}v-8'/>\n", from + 3.0, to - 3.0)
}
