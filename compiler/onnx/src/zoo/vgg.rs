//! VGG-11 with batch normalisation (Simonyan & Zisserman, 2015) as torchvision builds it.

use super::ZooError;
use super::net::{Net, Tensor, Window};

/// The features and the three-layer classifier. The published classifier sees 7x7 positions; torchvision reaches them
/// by adaptive average pooling, which exists here for feature maps of a multiple of 7. Smaller maps are used as they are.
pub fn vgg11_bn(net: &mut Net) -> Result<Tensor, ZooError> {
    let mut x = net.image();
    let mut index = 0;
    for stage in [&[64][..], &[128], &[256, 256], &[512, 512], &[512, 512]] {
        for &width in stage {
            let channels = net.scaled(width);
            let at = |offset: usize| format!("features.{}", index + offset);
            x = net.conv(&at(0), &x, channels, Window::square(3, 1, 1), 1, true)?;
            x = net.batch_norm(&at(1), &x, 1e-5, 1.0);
            x = net.relu(&at(2), &x);
            index += 3;
        }
        x = net.max_pool(&format!("features.{index}"), &x, Window::square(2, 2, 0))?;
        index += 1;
    }
    if x.height > 7 {
        if !x.height.is_multiple_of(7) {
            let found = net.image_size().to_string();
            return Err(ZooError::Option { option: "image_size", found, supported: "up to 255, or a multiple of 224" });
        }
        let window = x.height / 7;
        x = net.avg_pool("avgpool", &x, Window::square(window, window, 0))?;
    }
    let mut y = net.flatten("flatten", &x);
    for (layer, relu) in [("classifier.0", "classifier.1"), ("classifier.3", "classifier.4")] {
        let hidden = net.scaled(4096);
        y = net.gemm(layer, &y, hidden);
        y = net.relu(relu, &y);
    }
    let classes = net.classes();
    Ok(net.gemm("classifier.6", &y, classes))
}
