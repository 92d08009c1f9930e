// What one replica carries under objectives, and what that costs: loadgen/analysis/plan.py, capacity.py and slo.py in the page.
// A test compares the two.

import { FAILED, OFFERED } from "./data.js";
import { erfc, isotonic, shareInterval } from "./stats.js";

const HOURS_PER_MONTH = 730.5;
const SPEEDS = [10, 20, 30, 50];
const Z2 = 1.959964 ** 2;
const FULL_CACHE = 0.95;
const SHOWS_LIMIT = ["ERRORS", "DRIFTING", "TOO_FEW"];

/** Goodput, attainment and percentiles of a level.
 *  slos: [{metric: "ttft" | "tpot" | "e2e", limit_us, percentile: number | null}] */
function sloFigures(level, slos) {
  const { flags } = level.requests;
  const offered = [];
  for (let i = 0; i < flags.length; i++) if (flags[i] & OFFERED) offered.push(i);
  const failed = (i) => (flags[i] & FAILED) > 0;
  const values = Object.fromEntries(slos.map((slo) => [slo.metric, level.requests[`${slo.metric}_us`]]));
  /** true, false, or null where the metric is undefined. */
  const meets = (slo, i) => {
    if (failed(i)) return false;
    const value = values[slo.metric][i];
    return Number.isNaN(value) ? null : value <= slo.limit_us;
  };
  const strain = (rows, which) =>
    rows.map((i) => {
      const ratios = which.map((slo) => values[slo.metric][i] / slo.limit_us).filter((ratio) => !Number.isNaN(ratio));
      return ratios.length ? Math.max(...ratios) : NaN;
    });
  const slots = level.open ? null : level.summary.load.concurrency || null;
  const successes = offered.filter((i) => !failed(i));
  const asked = slos.filter((slo) => slo.percentile === null);
  const passed = offered.map((i) => (!failed(i) && asked.every((slo) => meets(slo, i) !== false) ? 1 : 0));
  const good = passed.reduce((sum, one) => sum + one, 0);
  const seconds = level.summary.duration_s;
  const missed = slos.flatMap((slo) => {
    const judged = successes.map((i) => meets(slo, i)).filter((met) => met !== null);
    return judged.length ? [[judged.filter((met) => !met).length / judged.length, sloText(slo)]] : [];
  });
  const figures = { failed: offered.length - successes.length, missed, offered: offered.length, good, goodput_rps: null, attainment: null, ci95: null, percentiles: [] };
  for (const slo of slos.filter((slo) => slo.percentile !== null)) {
    const judged = offered.filter((i) => meets(slo, i) !== null);
    const found = { requests: judged.length, share: null, ci95: null };
    if (judged.length && !(successes.length && judged.every(failed))) {
      const within = judged.map((i) => (meets(slo, i) ? 1 : 0));
      found.share = within.reduce((sum, one) => sum + one, 0) / within.length;
      found.ci95 = shareInterval(within, strain(judged, [slo]), slots);
    }
    figures.percentiles.push(found);
  }
  const unknown = (slo) => successes.every((i) => Number.isNaN(values[slo.metric][i]));
  if (!asked.length || (successes.length && asked.some(unknown))) return figures;
  if (seconds > 0) figures.goodput_rps = good / seconds;
  if (offered.length) {
    figures.attainment = good / offered.length;
    figures.ci95 = shareInterval(passed, strain(offered, asked), slots);
  }
  return figures;
}

/** As --slo takes it. */
function sloText({ metric, limit_us: us, percentile }) {
  const name = percentile === null ? metric : `${metric}:p${percentile}`;
  const plain = (value) => String(Number(value.toPrecision(10)));
  return us >= 1e6 ? `${name}=${plain(us / 1e6)}s` : `${name}=${plain(us / 1e3)}ms`;
}

/** To a whole number, a half to the even one, as Python rounds. */
function halfEven(value) {
  const rounded = Math.round(value);
  return Math.abs(value % 1) === 0.5 && rounded % 2 ? rounded - 1 : rounded;
}

/** What the lowest load that breaks the objectives breaks first (loadgen/analysis/criteria.py). */
function binds(broken) {
  if (!broken) return "nothing up to the highest load of the sweep: the limit was not found";
  const { figures, level } = broken;
  const load = level.open ? `${level.words.split(", round")[0]}, ${level.summary.load.arrival}` : level.words.split(", round")[0];
  const shares = [...(figures.failed ? [[figures.failed / figures.offered, "errors"]] : []), ...figures.missed];
  const [share, name] = shares.reduce((most, one) => (one[0] > most[0] ? one : most), [0, ""]);
  let words = share ? `${name}: missed by ${(share * 100).toFixed(1)}% of requests at ${load}` : `the SLO, at ${load}`;
  const server = level.summary.server ?? {};
  if ((server.kv_cache_usage?.max ?? 0) >= FULL_CACHE) words += "; the KV cache was full there";
  else if ((server.requests_waiting?.mean ?? 0) >= 1) words += `; ${halfEven(server.requests_waiting.mean)} requests waited in the engine's queue there`;
  return words;
}

function wordOf(criterion) {
  if (criterion.ci95 === null) return "undecided";
  if (criterion.ci95[0] >= criterion.target) return "holds";
  return criterion.ci95[1] < criterion.target ? "breaks" : "undecided";
}

function pointOf(level, slos, attainment) {
  const figures = sloFigures(level, slos);
  const percentiles = slos.filter((slo) => slo.percentile !== null);
  const criteria = percentiles.map((slo, i) => ({
    name: `p${slo.percentile} of ${slo.metric}`,
    target: slo.percentile / 100,
    ...figures.percentiles[i],
  }));
  if (percentiles.length < slos.length) {
    criteria.unshift({
      name: "requests within the SLO",
      target: attainment,
      requests: figures.offered,
      share: figures.attainment,
      ci95: figures.ci95,
    });
  }
  const summary = level.summary;
  const rate = level.open ? summary.load.rate_rps : summary.request_throughput_rps || null;
  const own = summary.ci95.request_throughput_rps;
  const rateInterval = rate === null ? [0, 0] : level.open || !own ? [rate, rate] : own;
  const words = criteria.map(wordOf);
  const statuses = summary.verdict.reasons.map((reason) => reason.status);
  let word = words.every((w) => w === "holds") ? "holds" : words.includes("breaks") ? "breaks" : "undecided";
  if (rate === null) word = "not counted";
  else if (statuses.some((s) => !SHOWS_LIMIT.includes(s)) || (statuses.length && word !== "breaks")) word = "not counted";
  const slack = (c) => (c.share === null ? Infinity : (c.share - c.target) / (1 - c.target));
  const tight = criteria.reduce((best, c) => (slack(c) < slack(best) ? c : best));
  return { level, figures, rate: rate || 0, rateInterval, criteria, tight, word, order: level.open ? rate || 0 : summary.load.concurrency };
}

/** Every level as a point, by rising load, those that do not count last. */
function pointsOf(levels, slos, attainment) {
  const points = levels.map((level) => pointOf(level, slos, attainment));
  points.sort((a, b) => (a.word === "not counted") - (b.word === "not counted") || a.order - b.order);
  const counted = points.filter((p) => p.word !== "not counted" && p.tight.share !== null);
  const fits = isotonic(counted.map((p) => p.tight.share), counted.map((p) => p.tight.requests));
  counted.forEach((point, i) => (point.fit = fits[i]));
  addChances(counted);
  return points;
}

/** The sample behind an interval: that whose Wilson interval it is. */
function effective({ share, ci95 }) {
  if (share === null || ci95 === null) return null;
  const end = Math.abs(ci95[1] - share) > Math.abs(ci95[0] - share) ? ci95[1] : ci95[0];
  return end > 0 && end < 1 ? (Z2 * end * (1 - end)) / (end - share) ** 2 : null;
}

/** Of each load the chance that it breaks the SLO, of the criterion that is the likeliest to be broken. */
function addChances(counted) {
  const byLoad = new Map();
  for (const point of [...counted].sort((a, b) => a.order - b.order)) byLoad.set(point.order, [...(byLoad.get(point.order) || []), point]);
  const curves = (counted[0]?.criteria ?? []).map(({ target }, number) => {
    const loads = [];
    for (const [load, same] of byLoad) {
      const known = same.map((point) => point.criteria[number]).map((c) => [c.share, effective(c)]).filter(([share, size]) => share !== null && size !== null);
      if (!known.length) continue;
      const size = known.reduce((sum, [, n]) => sum + n, 0);
      loads.push({ load, size, share: known.reduce((sum, [share, n]) => sum + share * n, 0) / size });
    }
    const chances = chancesBroken(loads.map((l) => l.share), loads.map((l) => l.size), target);
    return new Map(loads.map((l, i) => [l.load, chances[i]]));
  });
  for (const [load, same] of byLoad) {
    if (curves.length && curves.every((curve) => curve.has(load))) for (const point of same) point.chance_broken = Math.max(...curves.map((curve) => curve.get(load)));
  }
}

function chancesBroken(shares, sizes, target) {
  const fitted = isotonic(shares, sizes);
  const chances = fitted.map((share, i) => {
    const pooled = sizes.reduce((sum, n, k) => sum + (fitted[k] === share ? n : 0), 0);
    return 0.5 * erfc((share - target) * Math.sqrt((share === shares[i] ? sizes[i] : pooled) / (target * (1 - target)) / 2));
  });
  const keeps = fitted.filter((share) => share >= target).length;
  for (let i = keeps - 2; i >= 0; i--) chances[i] = Math.min(chances[i], chances[i + 1]);
  for (let i = keeps + 1; i < chances.length; i++) chances[i] = Math.max(chances[i], chances[i - 1]);
  return chances;
}

/** {capacity: [low, high | null], held, broken} or {refused}. */
function bracket(points) {
  const counted = points.filter((point) => point.word !== "not counted");
  if (!counted.length) return { refused: "no level counts: each has a verdict that spoils it" };
  const loads = new Map();
  for (const point of counted) loads.set(point.order, [...(loads.get(point.order) || []), point]);
  if (loads.size === 1) return { refused: "a single load does not show where the limit is: sweep two or more, one of which breaks the SLO" };
  const held = [];
  let broken = [];
  for (const [, same] of [...loads].sort(([a], [b]) => a - b)) {
    const words = new Set(same.map((point) => point.word));
    if (words.size === 1 && words.has("holds")) held.push(same);
    else if (words.has("breaks") && !words.has("holds")) {
      broken = same;
      break;
    }
  }
  if (!held.length) {
    if (broken.length && broken[0].order === Math.min(...loads.keys())) return { refused: `already the lowest load breaks the SLO: ${broken[0].level.words}` };
    return { refused: "no load is shown to keep the SLO: measure for longer" };
  }
  const sure = (point) => point.rateInterval[0];
  const lower = held
    .map((same) => same.reduce((least, point) => (sure(point) < sure(least) ? point : least)))
    .reduce((best, point) => (sure(point) > sure(best) ? point : best));
  if (!broken.length) return { capacity: [sure(lower), null], held: lower, broken: null };
  const upper = broken.reduce((best, point) => (point.rateInterval[1] > best.rateInterval[1] ? point : best));
  return { capacity: [sure(lower), Math.max(lower.rateInterval[1], upper.rateInterval[1])], held: lower, broken: upper };
}

function replicasFor(peak, capacity, headroom, spares) {
  return Math.max(Math.ceil((peak / (capacity * (1 - headroom))) * (1 - 1e-12)), 1) + spares;
}

const scaled = (interval, factor) =>
  interval === null || factor === null ? null : [interval[0] * factor, interval[1] === null ? null : interval[1] * factor];

const costOf = (hourly, perSecond, amount) =>
  perSecond === null || perSecond[0] <= 0
    ? null
    : [(hourly / 3600 / perSecond[0]) * amount, perSecond[1] === null ? null : (hourly / 3600 / perSecond[1]) * amount];

/** The plan of some levels of one run.
 *  demand: {slos, attainment, peak_rps | null, duty, headroom, spares, gpu_hour | null, gpus} */
export function makePlan(levels, demand) {
  // A plan rests on one kind of load: on the open loop where there are both, as after a search.
  if (levels.some((level) => level.open)) levels = levels.filter((level) => level.open);
  const points = pointsOf(levels, demand.slos, demand.attainment);
  const found = bracket(points);
  const plan = { points, refused: found.refused || null, capacity: found.capacity || null, held: found.held, broken: found.broken };
  if (plan.capacity === null) return plan;
  plan.binds = binds(found.broken);
  const mean = (name) => found.held.level.summary[name].mean ?? null;
  plan.input_tokens = mean("input_tokens");
  plan.output_tokens = mean("output_tokens");
  const total = plan.input_tokens === null || plan.output_tokens === null ? null : plan.input_tokens + plan.output_tokens;
  plan.output_tps = scaled(plan.capacity, plan.output_tokens);
  plan.total_tps = scaled(plan.capacity, total);
  const hourly = demand.gpu_hour === null ? null : demand.gpu_hour * demand.gpus;
  if (hourly !== null) {
    plan.per_thousand_requests = costOf(hourly, plan.capacity, 1e3);
    plan.per_million_output = costOf(hourly, plan.output_tps, 1e6);
    plan.per_million_total = costOf(hourly, plan.total_tps, 1e6);
  }
  if (demand.peak_rps !== null) {
    const [low, high] = plan.capacity;
    const replicas = replicasFor(demand.peak_rps, low, demand.headroom, demand.spares);
    const best = high === null ? null : replicasFor(demand.peak_rps, high, demand.headroom, demand.spares);
    plan.fleet = { replicas, replicas_at_best: best, gpus: replicas * demand.gpus };
    if (hourly !== null) {
      const perHour = [replicas * hourly, best === null ? null : best * hourly];
      const requests = demand.peak_rps * demand.duty * 3600;
      plan.fleet.cost_per_hour = perHour;
      plan.fleet.cost_per_month = scaled(perHour, HOURS_PER_MONTH);
      plan.fleet.per_thousand_requests = scaled(perHour, 1e3 / requests);
      plan.fleet.per_million_output = plan.output_tokens ? scaled(perHour, 1e6 / (requests * plan.output_tokens)) : null;
    }
  }
  plan.speeds = SPEEDS.map((speed) => {
    const slos = [...demand.slos.filter((slo) => slo.metric === "ttft"), { metric: "tpot", limit_us: 1e6 / speed, percentile: null }];
    const capacity = bracket(pointsOf(levels, slos, demand.attainment)).capacity || null;
    return { tokens_per_s: speed, capacity, output_tps: scaled(capacity, plan.output_tokens) };
  });
  return plan;
}
