//! SqueezeNet 1.1 (Iandola et al., 2016) as torchvision builds it: no batch normalisation, biases everywhere.

use super::ZooError;
use super::net::{Net, Tensor, Window};

/// Fire modules as (index in `features`, squeeze, expand); a pool precedes indices 3, 6 and 9.
const FIRES: [(usize, usize, usize); 8] =
    [(3, 16, 64), (4, 16, 64), (6, 32, 128), (7, 32, 128), (9, 48, 192), (10, 48, 192), (11, 64, 256), (12, 64, 256)];

/// The features, the 1x1 classifier and global pooling. Pools round their size up, as published.
pub fn squeezenet1_1(net: &mut Net) -> Result<Tensor, ZooError> {
    let image = net.image();
    let channels = net.scaled(64);
    let mut x = net.conv("features.0", &image, channels, Window::square(3, 2, 0), 1, true)?;
    x = net.relu("features.1", &x);
    for (index, squeeze, expand) in FIRES {
        if index % 3 == 0 && index < 12 {
            x = net.max_pool(&format!("features.{}", index - 1), &x, Window::square(3, 2, 0).ceil())?;
        }
        x = fire(net, &format!("features.{index}"), &x, squeeze, expand)?;
    }
    let classes = net.classes();
    x = net.conv("classifier.1", &x, classes, Window::square(1, 1, 0), 1, true)?;
    x = net.relu("classifier.2", &x);
    let pooled = net.global_avg_pool("classifier.3", &x);
    Ok(net.flatten("flatten", &pooled))
}

fn fire(net: &mut Net, name: &str, x: &Tensor, squeeze: usize, expand: usize) -> Result<Tensor, ZooError> {
    let (squeeze, expand) = (net.scaled(squeeze), net.scaled(expand));
    let at = |part: &str| format!("{name}.{part}");
    let mut y = net.conv(&at("squeeze"), x, squeeze, Window::square(1, 1, 0), 1, true)?;
    y = net.relu(&at("squeeze_activation"), &y);
    let mut one = net.conv(&at("expand1x1"), &y, expand, Window::square(1, 1, 0), 1, true)?;
    one = net.relu(&at("expand1x1_activation"), &one);
    let mut three = net.conv(&at("expand3x3"), &y, expand, Window::square(3, 1, 1), 1, true)?;
    three = net.relu(&at("expand3x3_activation"), &three);
    Ok(net.concat(&at("concat"), &[&one, &three]))
}
