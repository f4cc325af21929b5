//! Truncated power series: a value, and how it changes along one direction.
//!
//! A tensor is kept as *lanes*: lane 0 its values, lane 1 (if any) the derivative along the direction in which the
//! weights move. Linear operators treat every lane alike. Of a product, lane l is the sum of the products
//! of lanes i and j with i + j = l. A lane that is not there is zero.

use super::scalar::Scalar;

/// See the module's documentation; all lanes are of one length, and there is at least one.
pub(super) type Lanes<T> = Vec<Vec<T>>;

/// Adds lane by lane.
pub(super) fn add_lanes<T: Scalar>(sum: &mut Lanes<T>, part: &[Vec<T>]) {
    for (index, lane) in part.iter().enumerate() {
        match sum.get_mut(index) {
            Some(sum) => sum.iter_mut().zip(lane).for_each(|(s, &p)| *s += p),
            None => sum.push(lane.clone()),
        }
    }
}
