//! MobileNetV2 (Sandler et al., 2018) as torchvision builds it.

use super::ZooError;
use super::net::{Net, Tensor, Window};

const EPSILON: f32 = 1e-5;

/// Stages as (expansion, channels, blocks, stride of the first block).
const STAGES: [(usize, usize, usize, usize); 7] =
    [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)];

/// Stem, inverted residual blocks, 1x1 head and classifier. The head never has fewer than 1280 channels at width >= 1.
pub fn mobilenet_v2(net: &mut Net) -> Result<Tensor, ZooError> {
    let image = net.image();
    let channels = net.scaled_by_8(32);
    let mut x = conv_bn_relu6(net, "features.0", &image, channels, Window::square(3, 2, 1), 1)?;
    let mut index = 1;
    for (expansion, width, count, stride) in STAGES {
        let channels = net.scaled_by_8(width);
        for unit in 0..count {
            let stride = if unit == 0 { stride } else { 1 };
            x = inverted_residual(net, &format!("features.{index}"), &x, channels, stride, expansion)?;
            index += 1;
        }
    }
    let channels = net.scaled_by_8(1280);
    x = conv_bn_relu6(net, &format!("features.{index}"), &x, channels, Window::square(1, 1, 0), 1)?;
    let pooled = net.global_avg_pool("avgpool", &x);
    let flat = net.flatten("flatten", &pooled);
    let classes = net.classes();
    Ok(net.gemm("classifier.1", &flat, classes))
}

fn inverted_residual(
    net: &mut Net,
    name: &str,
    x: &Tensor,
    channels: usize,
    stride: usize,
    expansion: usize,
) -> Result<Tensor, ZooError> {
    let hidden = x.channels * expansion;
    let at = |part: usize| format!("{name}.conv.{part}");
    let (mut y, mut part) = (x.clone(), 0);
    if expansion != 1 {
        y = conv_bn_relu6(net, &at(0), &y, hidden, Window::square(1, 1, 0), 1)?;
        part = 1;
    }
    y = conv_bn_relu6(net, &at(part), &y, hidden, Window::square(3, stride, 1), hidden)?;
    y = net.conv(&at(part + 1), &y, channels, Window::square(1, 1, 0), 1, false)?;
    y = net.batch_norm(&at(part + 2), &y, EPSILON, 1.0);
    if stride == 1 && x.channels == channels {
        y = net.add(&format!("{name}.add"), x, &y);
    }
    Ok(y)
}

fn conv_bn_relu6(
    net: &mut Net,
    name: &str,
    x: &Tensor,
    channels: usize,
    window: Window,
    groups: usize,
) -> Result<Tensor, ZooError> {
    let y = net.conv(&format!("{name}.0"), x, channels, window, groups, false)?;
    let y = net.batch_norm(&format!("{name}.1"), &y, EPSILON, 1.0);
    Ok(net.relu6(&format!("{name}.2"), &y))
}
