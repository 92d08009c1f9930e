// Intervals of shares, as loadgen/analysis/intervals.py makes them; that file has the reasons and the sources.

export const Z = 1.959963984540054;
const MIN_COEFFICIENTS = 4;
const MIN_PERIODS = 6;
const FLATNESS = 0.05;
const MIN_TIME = 0.05;
const MIN_OF_EACH = 10;

/** The 95 % interval of the share of ones in `passed`, or null.
 *  `like`: the latency that is judged, NaN where there is none; `period`: slots of a closed loop, or null. */
export function shareInterval(passed, like, period) {
  const n = passed.length;
  if (n === 0 || (period !== null && n < MIN_PERIODS * period)) return null;
  const passes = passed.reduce((sum, one) => sum + one, 0);
  let size = n;
  if (Math.min(passes, n - passes) >= MIN_OF_EACH) {
    size = normalEffective(passed, period);
  } else if (like) {
    const known = like.filter((value) => !Number.isNaN(value));
    if (known.length >= 2 * MIN_OF_EACH) {
      const far = MIN_OF_EACH / known.length;
      const ordered = Float64Array.from(known).sort();
      const estimate = quantile(ordered, passes > n - passes ? 1 - far : far);
      const series = known.map((value) => (value < estimate ? 1 : value === estimate ? 0.5 : 0));
      size = Math.min(n, (normalEffective(series, period) * n) / known.length);
    }
  }
  const share = passes / n;
  const z2 = Z * Z;
  const centre = (share + z2 / (2 * size)) / (1 + z2 / size);
  const half = (Z / (1 + z2 / size)) * Math.sqrt((share * (1 - share)) / size + (Z / (2 * size)) ** 2);
  return [passes ? Math.max(centre - half, 0) : 0, passes < n ? Math.min(centre + half, 1) : 1];
}

/** Quantile q of sorted values, interpolated. */
export function quantile(ordered, q) {
  const at = q * (ordered.length - 1);
  const low = Math.floor(at);
  const high = Math.min(low + 1, ordered.length - 1);
  return ordered[low] + (ordered[high] - ordered[low]) * (at - low);
}

/** The least-squares fit that never rises. */
export function isotonic(shares, weights) {
  const blocks = [];
  shares.forEach((share, i) => {
    blocks.push({ sum: share * weights[i], weight: weights[i], count: 1 });
    while (blocks.length > 1) {
      const last = blocks[blocks.length - 1];
      const before = blocks[blocks.length - 2];
      if (before.sum / before.weight >= last.sum / last.weight) break;
      before.sum += last.sum;
      before.weight += last.weight;
      before.count += last.count;
      blocks.pop();
    }
  });
  return blocks.flatMap((block) => Array(block.count).fill(block.sum / block.weight));
}

function normalEffective(series, period) {
  const power = lowPower(series, period);
  const n = series.length;
  const mean = series.reduce((sum, value) => sum + value, 0) / n;
  const variance = n > 1 ? series.reduce((sum, value) => sum + (value - mean) ** 2, 0) / (n - 1) : 0;
  const average = power.reduce((sum, value) => sum + value, 0) / power.length;
  const time = Math.max(variance > 0 ? average / variance : 1, MIN_TIME);
  return (n / time) * (Z / studentQuantile(0.975, power.length)) ** 2;
}

function lowPower(series, period) {
  const n = series.length;
  if (n < 2) return [0];
  let count = Math.floor(0.4 * n ** (2 / 3));
  if (period !== null) count = Math.min(count, Math.floor(n / Math.max(2 * period, 1)));
  count = Math.min(Math.max(count, MIN_COEFFICIENTS), n - 1);
  const mean = series.reduce((sum, value) => sum + value, 0) / n;
  let power = [];
  for (let k = 1; k <= count; k++) power.push((2 / n) * cosineSum(series, mean, k) ** 2);
  while (power.length > MIN_COEFFICIENTS) {
    const sums = [];
    power.reduce((sum, value, i) => (sums[i] = sum + value), 0);
    const total = sums[sums.length - 1];
    let clearest = null;
    for (const split of geometric(MIN_COEFFICIENTS, power.length - 1, 12)) {
      const rest = Math.max((total - sums[split - 1]) / (power.length - split), 2.2250738585072014e-308);
      const chance = fAbove(split, power.length - split, sums[split - 1] / split / rest);
      if (clearest === null || chance < clearest.chance) clearest = { split, chance };
    }
    if (clearest.chance >= FLATNESS) break;
    power = power.slice(0, clearest.split);
  }
  return power;
}

/** sum (x_j - mean) cos(pi k (2j + 1) / 2n), the cosine turned on step by step. */
function cosineSum(series, mean, k) {
  const n = series.length;
  const step = (Math.PI * k) / n;
  const [stepCos, stepSin] = [Math.cos(step), Math.sin(step)];
  let cos = 0;
  let sin = 0;
  let sum = 0;
  for (let j = 0; j < n; j++) {
    if (j % 256 === 0) {
      // Afresh now and then, so that rounding does not add up.
      cos = Math.cos(step * (j + 0.5));
      sin = Math.sin(step * (j + 0.5));
    }
    sum += (series[j] - mean) * cos;
    [cos, sin] = [cos * stepCos - sin * stepSin, sin * stepCos + cos * stepSin];
  }
  return sum;
}

function geometric(low, high, count) {
  const found = new Set();
  for (let i = 0; i < count; i++) {
    const exact = i === 0 ? low : i === count - 1 ? high : 10 ** (Math.log10(low) + (i * (Math.log10(high) - Math.log10(low))) / (count - 1));
    found.add(Math.floor(exact));
  }
  return [...found].sort((a, b) => a - b);
}

function fAbove(d1, d2, x) {
  return x <= 0 ? 1 : incompleteBeta(d2 / (d2 + d1 * x), d2 / 2, d1 / 2);
}

/** The complementary error function: its series, or beyond 2 its continued fraction. */
export function erfc(x) {
  if (x < 0) return 2 - erfc(-x);
  if (x < 2) {
    let term = x;
    let sum = x;
    for (let n = 1; Math.abs(term) > 1e-17 * sum && n < 200; n++) {
      term *= (-x * x) / n;
      sum += term / (2 * n + 1);
    }
    return 1 - (2 / Math.sqrt(Math.PI)) * sum;
  }
  let fraction = 0;
  for (let n = 120; n > 0; n--) fraction = n / 2 / (x + fraction);
  return Math.exp(-x * x) / Math.sqrt(Math.PI) / (x + fraction);
}

/** Student's t: the value below which a share p of it lies, p above one half. */
export function studentQuantile(p, degrees) {
  let low = 0;
  let high = 1e6;
  for (let i = 0; i < 200; i++) {
    const middle = (low + high) / 2;
    const below = 1 - incompleteBeta(degrees / (degrees + middle * middle), degrees / 2, 0.5) / 2;
    if (below < p) low = middle;
    else high = middle;
  }
  return (low + high) / 2;
}

/** The regularised incomplete beta function, by its continued fraction (Lentz's method). */
export function incompleteBeta(x, a, b) {
  if (x <= 0) return 0;
  if (x >= 1) return 1;
  if (x > (a + 1) / (a + b + 2)) return 1 - incompleteBeta(1 - x, b, a);
  const front = Math.exp(logGamma(a + b) - logGamma(a) - logGamma(b) + a * Math.log(x) + b * Math.log1p(-x)) / a;
  const tiny = 1e-300;
  let c = 1;
  let d = 1 / nonzero(1 - ((a + b) * x) / (a + 1), tiny);
  let fraction = d;
  for (let m = 1; m < 1000; m++) {
    let term = (m * (b - m) * x) / ((a + 2 * m - 1) * (a + 2 * m));
    d = 1 / nonzero(1 + term * d, tiny);
    c = nonzero(1 + term / c, tiny);
    fraction *= d * c;
    term = (-(a + m) * (a + b + m) * x) / ((a + 2 * m) * (a + 2 * m + 1));
    d = 1 / nonzero(1 + term * d, tiny);
    c = nonzero(1 + term / c, tiny);
    fraction *= d * c;
    if (Math.abs(d * c - 1) < 1e-15) break;
  }
  return front * fraction;
}

function nonzero(value, tiny) {
  return Math.abs(value) < tiny ? tiny : value;
}

/** ln Gamma by Stirling's series, the argument first moved above 10. */
export function logGamma(x) {
  let shift = 0;
  while (x < 10) shift -= Math.log(x++);
  const r = 1 / x;
  const r2 = r * r;
  const series = r * (1 / 12 - r2 * (1 / 360 - r2 * (1 / 1260 - r2 * (1 / 1680 - r2 * (1 / 1188 - (r2 * 691) / 360360)))));
  return shift + (x - 0.5) * Math.log(x) - x + 0.5 * Math.log(2 * Math.PI) + series;
}
