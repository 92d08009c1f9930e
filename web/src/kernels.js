// The kernels beside the serving figures: from the data sheet's roof down to what was served.

import { escape, figure } from "./figure.js";
import { tooltip, valueAxis } from "./load.js";
import { digits, ms } from "./words.js";

export function waterfallCharts(parent, run) {
  run.waterfalls.forEach((fall, i) => {
    const load = fall.load.model === "open" ? `${fall.load.rate_rps} requests/s` : `${fall.load.concurrency} in flight`;
    const bars = barsOf(fall);
    figure(parent, {
      id: `waterfall-${i}`, simulated: run.simulated, height: 60 + 26 * Math.max(bars.length, 3),
      title: `${fall.metric.toUpperCase()} at ${load}, ms: ${fall.step.phase} of ${fall.step.sequences} x ${fall.step.context} tokens`,
      empty: "No sum: the reason is said below.",
      words: () => bars.map((bar) => `${bar.name} ${ms(bar.size)} ms`).join(", "),
      make: (theme) => {
        if (!bars.length) return null;
        return {
          grid: { left: 164, right: 66, top: 22, bottom: 30 },
          tooltip: tooltip(theme, ({ data: { bar } }) => `<b>${escape(bar.name)}</b>: ${bar.gap && bar.size >= 0 ? "+" : ""}${ms(bar.size)} ms${bar.why ? `<br>${escape(bar.why)}` : ""}`),
          xAxis: valueAxis(theme, false, { min: Math.min(0, ...bars.map((bar) => Math.min(bar.start, bar.start + bar.size) * 1e3)) }),
          yAxis: { type: "category", inverse: true, data: bars.map((bar) => bar.name), axisTick: { show: false }, axisLabel: { color: theme.soft, width: 154, overflow: "truncate" }, axisLine: { lineStyle: { color: theme.line } } },
          series: [{
            name: fall.metric, type: "custom", encode: { x: [1, 2], y: 0 },
            data: bars.map((bar, place) => ({ value: [place, bar.start * 1e3, (bar.start + bar.size) * 1e3], bar })),
            renderItem: (params, api) => {
              const bar = bars[params.dataIndex];
              const [a, b] = [api.coord([api.value(1), api.value(0)]), api.coord([api.value(2), api.value(0)])];
              const left = Math.min(a[0], b[0]);
              const width = Math.max(Math.abs(b[0] - a[0]), 1);
              return {
                type: "group",
                children: [
                  { type: "rect", shape: { x: left, y: a[1] - 8, width, height: 16 }, style: { fill: theme.series[bar.gap ? 1 : 0] } },
                  { type: "text", style: { x: left + width + 4, y: a[1], text: `${bar.gap && bar.size >= 0 ? "+" : ""}${ms(bar.size)}`, fill: theme.soft, font: "11px system-ui", verticalAlign: "middle" } },
                ],
              };
            },
          }],
        };
      },
    });
  });
}

/** Totals from 0, and between them the gaps, each where the one before it ended. */
function barsOf(fall) {
  if (fall.refused || fall.missing.length || fall.served_s === null) return [];
  const bars = [{ name: "data sheet roof", start: 0, size: fall.sheet_roof_s, gap: false }];
  const totals = { 0: ["measured roof", fall.roof_s], 2: ["sum of kernels", fall.kernels_s] };
  let at = fall.sheet_roof_s;
  fall.gaps.forEach((gap, i) => {
    bars.push({ name: gap.name, start: at, size: gap.seconds, gap: true, why: gap.why });
    at += gap.seconds;
    if (totals[i]) bars.push({ name: totals[i][0], start: 0, size: totals[i][1], gap: false });
  });
  bars.push({ name: `served ${fall.metric.toUpperCase()}`, start: 0, size: fall.served_s, gap: false });
  return bars;
}

/** Rows of the table of kernels: every implementation that was timed, or why it was not. */
export function kernelRows(run) {
  return run.kernels
    .filter((k) => k.own || k.status !== "skipped")
    .map((k) => [
      k.kernel, `${k.case} [${k.state}]`, k.own ? k.implementation : `(${k.implementation})`,
      k.time_s === null ? `${k.status.replaceAll("_", " ")}: ${k.message ?? ""}` : digits(k.time_s * 1e6, k.time_s < 1e-3 ? 1 : 0),
      k.bytes_per_s ? digits(k.bytes_per_s / 1e9, 0) : "", k.flops_per_s > 1e12 ? digits(k.flops_per_s / 1e12, 1) : "",
      k.roof_share === null ? "" : `${digits(k.roof_share * 100, 0)} %`,
      k.best_baseline ? `${digits(k.best_baseline.ratio, 2)}x ${k.best_baseline.baseline}` : "",
    ]);
}
