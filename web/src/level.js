// One level: percentile curves of all, and the timeline, the slowest requests and the stalls of the one in focus.

import { FAILED, MEASURED, OFFERED } from "./data.js";
import { escape, figure } from "./figure.js";
import { tooltip, valueAxis, verdictLines } from "./load.js";
import { amount, digits, ms, percent } from "./words.js";

const MOST_POINTS = 20000;
const SLOWEST = 20;
const SHARES = [0, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.995, 0.999, 0.9999];

const sortedOf = (level, name) => {
  const { flags } = level.requests;
  return level.requests[name].filter((v, i) => (flags[i] & OFFERED) && !(flags[i] & FAILED) && !Number.isNaN(v)).sort();
};

/** Percentile curves, a line for each level; the axis stretches the tail: each nine is as long as the one before. */
export function distributionCharts(parent, data) {
  const simulated = data.runs.some((run) => run.simulated);
  const short = Object.fromEntries(data.metrics.map((one) => [one.key, one.short]));
  for (const [name, title] of [
    ...["ttft", "tpot", "e2e"].map((latency) => [`${latency}_us`, short[`${latency}_s`]]), ["gap_us", "Longest gap of a request"],
  ]) {
    const lines = data.runs.flatMap((run) =>
      run.levels.map((level) => ({ level, label: run.letter ? `${run.letter} ${level.name}` : level.words, values: sortedOf(level, name) })),
    ).filter((line) => line.values.length);
    const tail = (share) => -Math.log10(1 - share);
    figure(parent, {
      id: `percentiles-${name.slice(0, -3)}`, title: `${title}, ms, by percentile`, log: true, simulated,
      words: () => lines.map((line) => `${line.label}: median ${amount(at(line.values, 0.5) / 1e3)} ms of ${line.values.length}`).join("; "),
      make: (theme, state) => {
        if (!lines.length) return null;
        return {
          grid: { left: 64, right: 20, top: 40, bottom: 46 },
          legend: { top: 0, left: 0, right: simulated ? 90 : 0, type: "scroll", itemWidth: 18, itemHeight: 9, textStyle: { color: theme.ink, fontSize: 11 } },
          tooltip: tooltip(theme, ({ data: d, seriesName }) => `<b>${escape(seriesName)}</b><br>${digits(d.share * 100, d.share > 0.99 ? 2 : 1)} % within ${amount(d.value[1])} ms<br>of ${d.line().values.length.toLocaleString("en-US")} requests${verdictLines(d.line().level)}`),
          xAxis: {
            type: "value", min: 0, max: tail(1 - 1 / Math.max(...lines.map((l) => l.values.length)) / 2), name: "percentile", nameLocation: "middle", nameGap: 28, nameTextStyle: { color: theme.soft },
            axisLabel: { color: theme.soft, customValues: [0.5, 0.9, 0.99, 0.999, 0.9999].map(tail), formatter: (v) => `p${Number(((1 - 10 ** -v) * 100).toFixed(3))}` },
            axisTick: { customValues: [0.5, 0.9, 0.99, 0.999, 0.9999].map(tail) }, splitLine: { show: false }, axisLine: { lineStyle: { color: theme.line } },
          },
          yAxis: valueAxis(theme, state.log),
          series: lines.map((line, i) => {
            const colour = theme.series[i % theme.series.length];
            return {
              name: line.label, type: "line", step: false, showSymbol: true, symbolSize: 4, lineStyle: { color: colour, width: 2, type: line.level.valid ? "solid" : "dashed" }, itemStyle: { color: colour },
              data: curve(line.values).map(([share, value]) => ({ value: [tail(share), value / 1e3], share, line: () => line })),
            };
          }),
        };
      },
    });
  }
}

const at = (ordered, q) => ordered[Math.min(Math.floor(q * ordered.length), ordered.length - 1)];

/** [share, value]: 60 points of the body, and every point of the far tail. */
function curve(ordered) {
  const n = ordered.length;
  const places = new Set();
  for (let i = 0; i <= 60; i++) places.add(Math.min(Math.floor((1 - 10 ** ((-i / 60) * Math.log10(n))) * n), n - 1));
  for (let i = Math.max(n - 20, 0); i < n; i++) places.add(i);
  return [...places].sort((a, b) => a - b).map((i) => [(i + 0.5) / n, ordered[i]]);
}

/** The charts of the level in focus; the result's show() puts another one there. */
export function levelCharts(parent, data) {
  let level = null;
  const simulated = data.runs.some((run) => run.simulated);
  const rows = () => timelineRows(level);
  const timeline = figure(parent, {
    id: "timeline", title: "Timeline", simulated, renderer: "canvas", height: 660,
    note: "Seconds from the level's first request. Shaded: the measured window. Dots are requests at their time of issue; a cross is one that failed.",
    words: () => rows().map((row) => row.title).join(", ") + ` over ${amount(level.window_us[1] / 1e6)} seconds of ${level.words}`,
    make: (theme) => (level === null ? null : timelineOption(theme, level, rows(), simulated)),
  });
  const slow = figure(parent, {
    id: "slowest", title: `The ${SLOWEST} slowest requests`, simulated, height: 440,
    note: "From when a request was due or sent: waiting to be sent, until the first token, and until the last.",
    words: () => slowest(level).slice(0, 3).map((r) => `request ${r.seq}: ${ms(r.e2e / 1e6)} ms`).join(", "),
    make: (theme) => {
      const found = level === null ? [] : slowest(level);
      if (!found.length) return null;
      const bar = (name, colour, of) => ({ name, type: "bar", stack: "all", itemStyle: { color: colour }, barMaxWidth: 14, data: found.map((r) => ({ value: of(r) / 1e3, request: r })) });
      return {
        grid: { left: 76, right: 24, top: 30, bottom: 42 },
        legend: { top: 0, left: 0, right: simulated ? 90 : 0, type: "scroll", itemWidth: 14, textStyle: { color: theme.ink, fontSize: 11 } },
        tooltip: tooltip(theme, ({ data: { request: r } }) => `<b>request ${r.seq}</b> at ${amount(r.issued / 1e6)} s<br>waited to be sent ${ms(r.wait / 1e6)} ms<br>TTFT ${ms(r.ttft / 1e6)} ms<br>E2E ${ms(r.e2e / 1e6)} ms<br>longest gap ${ms(r.gap / 1e6)} ms<br>${amount(r.input)} tokens in, ${amount(r.output)} out`),
        xAxis: valueAxis(theme, false, { name: "ms", nameLocation: "middle", nameGap: 26, splitLine: { lineStyle: { color: theme.line } } }),
        yAxis: { type: "category", inverse: true, data: found.map((r) => `#${r.seq}`), axisLabel: { color: theme.soft }, axisTick: { show: false }, axisLine: { lineStyle: { color: theme.line } } },
        series: [
          bar("waiting to be sent", theme.series[2], (r) => r.wait),
          bar("to the first token", theme.series[1], (r) => r.ttft - r.wait),
          bar("to the last token", theme.series[0], (r) => r.e2e - r.ttft),
        ],
      };
    },
  });
  const stalls = figure(parent, {
    id: "stalls", title: "Stalls: the longest gap of each request, ms", log: true, simulated, renderer: "canvas",
    note: "A stalled request has a gap of more than five times its own median gap, and more than 10 ms.",
    words: () => `${percent(level?.summary.stalls.requests)} of requests stalled`,
    make: (theme, state) => {
      const points = level === null ? [] : dots(level, "gap_us");
      if (!points.length) return null;
      return {
        grid: { left: 64, right: 20, top: 24, bottom: 42 },
        tooltip: tooltip(theme, ({ data: { value, seq } }) => `<b>request ${seq}</b> at ${amount(value[0])} s<br>longest gap ${amount(value[1])} ms`),
        xAxis: valueAxis(theme, false, { name: "s", nameLocation: "middle", nameGap: 26, splitLine: { show: false } }),
        yAxis: valueAxis(theme, state.log),
        series: [{ name: "longest gap", type: "scatter", symbolSize: 4, itemStyle: { color: theme.series[0], opacity: 0.6 }, data: points }],
      };
    },
  });
  return {
    show(next) {
      level = next;
      for (const one of [timeline, slow, stalls]) if (one.drawn() !== null || one.box.getBoundingClientRect().top < innerHeight + 400) one.draw();
    },
  };
}

/** [seconds, ms] of each request that has the latency; thinned out evenly where there are very many. */
function dots(level, name) {
  const { flags, issued_us, seq } = level.requests;
  const values = level.requests[name];
  const found = [];
  const every = Math.max(1, Math.ceil(values.length / MOST_POINTS));
  for (let i = 0; i < values.length; i += every) {
    if (!Number.isNaN(values[i])) found.push({ value: [issued_us[i] / 1e6, values[i] / 1e3], seq: seq[i], measured: (flags[i] & MEASURED) > 0 });
  }
  return found;
}

function slowest(level) {
  const r = level.requests;
  return [...r.e2e_us.keys()]
    .filter((i) => (r.flags[i] & OFFERED) && !(r.flags[i] & FAILED) && !Number.isNaN(r.e2e_us[i]) && !Number.isNaN(r.ttft_us[i]))
    .sort((a, b) => r.e2e_us[b] - r.e2e_us[a])
    .slice(0, SLOWEST)
    .map((i) => ({ seq: r.seq[i], issued: r.issued_us[i], wait: r.wait_us[i], ttft: r.ttft_us[i], e2e: r.e2e_us[i], gap: r.gap_us[i], input: r.input_tokens[i], output: r.output_tokens[i] }));
}

function timelineRows(level) {
  if (level === null) return [];
  const { client, server, gpu } = level;
  const rows = [];
  const lines = (title, parts, extra = {}) => {
    const known = parts.filter(([, points]) => points?.length);
    if (known.length) rows.push({ title, lines: known, ...extra });
  };
  lines("requests", [["in flight", client.in_flight], ["running in the engine", server.requests_running], ["waiting in the engine", server.requests_waiting]]);
  lines("tokens/s", [["tokens/s", level.tokens_per_s]]);
  const ttft = dots(level, "ttft_us");
  const { flags, issued_us, took_us, seq } = level.requests;
  const failed = [...flags.keys()].filter((i) => flags[i] & FAILED).map((i) => ({ value: [issued_us[i] / 1e6, took_us[i] / 1e3], seq: seq[i] }));
  if (ttft.length || failed.length) rows.push({ title: "TTFT, ms", dots: ttft, failed });
  lines("KV cache, %", [["KV cache in use", server.kv_cache_usage?.map(([t, v]) => [t, v * 100])]]);
  lines("GPU power, W", [["GPU power", gpu.power_w]]);
  lines("SM clock, MHz", [["SM clock", gpu.sm_clock_mhz]], { fromZero: false });
  lines("own lateness, ms", [["loadgen's own lateness, most", client.lateness_ms]]);
  return rows;
}

function timelineOption(theme, level, rows, simulated) {
  const top = 34;
  const gap = 26;
  const tall = (660 - top - 44 - gap * (rows.length - 1)) / Math.max(rows.length, 1);
  const [from, to] = level.window_us.map((us) => us / 1e6);
  const series = [];
  rows.forEach((row, i) => {
    const shade = { silent: true, itemStyle: { color: theme.line, opacity: 0.35 }, data: [[{ xAxis: from }, { xAxis: to }]] };
    let first = true;
    const add = (one) => {
      series.push({ xAxisIndex: i, yAxisIndex: i, ...one, ...(first && { markArea: shade }) });
      first = false;
    };
    (row.lines || []).forEach(([name, points], k) => add({ name, type: "line", showSymbol: false, lineStyle: { width: 1.5, color: theme.series[k] }, itemStyle: { color: theme.series[k] }, data: points }));
    if (row.dots) {
      add({ name: "TTFT", type: "scatter", symbolSize: 4, itemStyle: { color: theme.series[1], opacity: 0.55 }, data: row.dots });
      if (row.failed.length) add({ name: "failed", type: "scatter", symbol: "path://M0,0L10,10M10,0L0,10", symbolSize: 7, itemStyle: { color: "none", borderColor: theme.bad, borderWidth: 1.5 }, data: row.failed });
    }
  });
  const errors = new Map(level.errors.map(([seq, kind, message]) => [seq, `${kind}: ${message}`]));
  return {
    grid: rows.map((_, i) => ({ left: 64, right: 16, top: top + i * (tall + gap), height: tall })),
    axisPointer: { link: [{ xAxisIndex: "all" }] },
    dataZoom: [{ type: "inside", xAxisIndex: rows.map((_, i) => i), zoomOnMouseWheel: "ctrl", moveOnMouseWheel: false }],
    legend: { top: 0, left: 0, right: simulated ? 90 : 0, type: "scroll", textStyle: { color: theme.ink, fontSize: 11 } },
    tooltip: tooltip(theme, (items) => {
      const list = Array.isArray(items) ? items : [items];
      if (!list.length) return "";
      const lines = list.slice(0, 8).map((item) => `${item.marker ?? ""}${escape(item.seriesName)}: ${amount(item.value[1])}${item.data.seq !== undefined ? ` (request ${item.data.seq}${errors.has(item.data.seq) ? `, ${escape(errors.get(item.data.seq))}` : ""})` : ""}`);
      return `<b>${amount(list[0].value[0])} s</b><br>${lines.join("<br>")}`;
    }, "axis"),
    xAxis: rows.map((_, i) => ({
      type: "value", gridIndex: i, min: 0, max: Math.ceil(Math.max(to, ...rows.flatMap((row) => (row.lines || []).flatMap(([, p]) => p[p.length - 1][0])))),
      axisLabel: { show: i === rows.length - 1, color: theme.soft }, axisTick: { show: false }, splitLine: { show: false }, axisLine: { lineStyle: { color: theme.line } },
      name: i === rows.length - 1 ? "s" : "", nameLocation: "middle", nameGap: 24, nameTextStyle: { color: theme.soft },
      axisPointer: { show: true, label: { show: false } },
    })),
    yAxis: rows.map((row, i) => valueAxis(theme, false, { gridIndex: i, name: row.title, nameTextStyle: { color: theme.ink, align: "left", fontSize: 11 }, nameGap: 6, splitNumber: 2, scale: row.fromZero === false, min: row.fromZero === false ? undefined : 0, splitLine: { lineStyle: { color: theme.line } } })),
    series,
  };
}
