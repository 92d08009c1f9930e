// Charts against load: latencies with their intervals, throughput with the ideal line, and the trade between the two.

import { escape, figure } from "./figure.js";
import { amount, ms } from "./words.js";

export const QUANTILES = ["mean", "p50", "p90", "p95", "p99"];
const SHOWN = { mean: false, p50: true, p90: false, p95: false, p99: true };

/** Latency charts of all runs. onLevel(run index, level index) is told of a click. */
export function loadCharts(parent, data, onLevel) {
  const axis = axisOf(data);
  const simulated = data.runs.some((run) => run.simulated);
  const click = (event) => event.data?.level && onLevel(event.data.level());
  for (const { key: metric, chart: title } of data.metrics.filter((one) => one.chart)) {
    const lines = data.runs.flatMap((run, r) =>
      (data.runs.length > 1 ? ["p50", "p99"] : QUANTILES).map((quantile) => ({
        name: `${run.letter} ${quantile}`.trim(),
        shown: SHOWN[quantile],
        colour: data.runs.length > 1 ? r : QUANTILES.indexOf(quantile),
        dash: data.runs.length > 1 && quantile === "p99" ? 1 : 0,
        points: run.levels
          .filter((level) => !level.withheld)
          .map((level) => {
            const found = level.summary[metric];
            const ci95 = found.ci95?.[quantile];
            return { level, x: axis.of(level), y: found[quantile], low: ci95?.[0], high: ci95?.[1], count: found.count };
          }),
      })),
    );
    against(parent, { id: `chart-${metric.slice(0, -2)}`, title: `${title}, ms`, axis, lines, factor: 1e3, unit: "ms", simulated, click });
  }
  const throughput = data.runs.flatMap((run, r) => {
    const points = run.levels.map((level) => {
      const ci95 = level.summary.ci95.output_throughput_tps;
      return { level, x: axis.of(level), y: level.summary.output_throughput_tps, low: ci95?.[0], high: ci95?.[1], count: level.summary.requests.completed };
    });
    const lines = [{ name: `${run.letter} measured`.trim(), shown: true, colour: r, dash: 0, points }];
    const first = points.filter((p) => p.y && p.x).sort((a, b) => a.x - b.x)[0];
    if (first && points.length > 1) {
      lines.push({
        name: `${run.letter} ideal`.trim(),
        shown: true,
        ideal: true,
        colour: r,
        dash: 3,
        points: points.filter((p) => p.x).map((p) => ({ level: p.level, x: p.x, y: (first.y / first.x) * p.x })),
      });
    }
    return lines;
  });
  against(parent, { id: "chart-throughput", title: "Output tokens/s", axis, lines: throughput, factor: 1, unit: "tokens/s", simulated, click, log: true, note: "Ideal: in proportion to the load, from the lowest one measured." });
  pareto(parent, data, simulated, click);
}

/** What the loads of all runs have in common: one model of load, or else the requests/s that were reached. */
function axisOf(data) {
  const kinds = new Set(data.runs.flatMap((run) => run.levels.map((level) => level.open)));
  if (kinds.size > 1) return { name: "requests/s reached", of: (level) => level.summary.request_throughput_rps };
  return { name: kinds.has(true) ? "requests/s" : "in flight", of: (level) => level.value };
}

function against(parent, { id, title, axis, lines, factor, unit, simulated, click, note = null, log = false }) {
  const known = (line) => line.points.filter((p) => p.y !== null && p.y !== undefined && p.x).sort((a, b) => a.x - b.x);
  const loads = [...new Set(lines.flatMap((line) => known(line).map((p) => p.x)))].sort((a, b) => a - b);
  figure(parent, {
    id, title, log, note, simulated, click,
    words: () =>
      lines.filter((line) => line.shown && !line.ideal)
        .map((line) => `${line.name}: ${known(line).map((p) => `${amount(p.y * factor)} at ${amount(p.x)} ${axis.name}${p.level.valid ? "" : " (not valid)"}`).join(", ")}`)
        .join("; "),
    make: (theme, state) => {
      if (!lines.some((line) => known(line).length)) return null;
      const series = [];
      for (const line of lines) {
        const colour = theme.series[line.colour % theme.series.length];
        const points = known(line);
        series.push({
          name: line.name,
          type: "line",
          symbol: line.ideal ? "none" : "circle",
          symbolSize: 9,
          lineStyle: { color: colour, width: line.ideal ? 1 : 2, type: ["solid", "dashed", "dotted", [2, 4], [8, 4]][line.dash] },
          itemStyle: { color: colour, borderColor: colour, borderWidth: 2 },
          silent: line.ideal,
          data: points.map((p) => ({
            value: [p.x, p.y * factor],
            // Functions, since ECharts copies whatever else it is given.
            level: () => p.level,
            point: () => p,
            itemStyle: p.level.valid ? undefined : { color: theme.card, borderType: "dashed" },
          })),
        });
        const bars = points.filter((p) => p.low !== undefined && p.low !== null);
        if (!line.ideal && bars.length) series.push(whiskers(line.name, colour, bars.map((p) => [p.x, Math.max(p.low * factor, 0), p.high * factor])));
      }
      return {
        grid: { left: 64, right: 20, top: 40, bottom: 46 },
        legend: {
          top: 0, left: 0, right: simulated ? 90 : 0, type: lines.length > 10 ? "scroll" : "plain", itemWidth: 18, itemHeight: 9, textStyle: { color: theme.ink, fontSize: 11 },
          data: [...new Set(lines.map((line) => line.name))],
          selected: Object.fromEntries(lines.map((line) => [line.name, line.shown])),
          inactiveColor: theme.soft,
        },
        tooltip: tooltip(theme, (items) => tip(items, unit)),
        xAxis: loadAxis(theme, axis.name, loads),
        yAxis: valueAxis(theme, state.log),
        series,
      };
    },
  });
}

export function tooltip(theme, formatter, trigger = "item") {
  return {
    trigger, confine: true, backgroundColor: theme.back, borderColor: theme.line, textStyle: { color: theme.ink, fontSize: 12 },
    extraCssText: "white-space:normal;max-width:340px", formatter,
  };
}

function tip(item, unit) {
  if (!item.data?.level) return "";
  const [level, point] = [item.data.level(), item.data.point()];
  const factor = unit === "ms" ? 1e3 : 1;
  const lines = [
    `<b>${escape(level.run.letter ? `${level.run.name}: ` : "")}${escape(level.words)}</b>${level.run.simulated ? " SIMULATED" : ""}`,
    `${escape(item.seriesName)}: ${amount(point.y * factor)} ${unit}`,
  ];
  if (point.low !== undefined && point.low !== null) lines.push(`95 %: ${amount(point.low * factor)} .. ${amount(point.high * factor)}`);
  if (point.count) lines.push(`of ${point.count.toLocaleString("en-US")} ${unit === "ms" ? "values" : "requests"}`);
  return lines.join("<br>") + verdictLines(level);
}

export function verdictLines(level) {
  if (level.valid) return "<br>VALID";
  return level.summary.verdict.reasons.map((r) => `<br><b>${escape(r.status)}</b>: ${escape(r.text)}`).join("");
}

/** Intervals as bars with ends, above and below their points. */
export function whiskers(name, colour, data, across = false) {
  return {
    name, type: "custom", silent: true, z: 1, itemStyle: { color: colour }, data, tooltip: { show: false },
    encode: across ? { x: [1, 2], y: 0 } : { x: 0, y: [1, 2] },
    renderItem: (_, api) => {
      const [low, high] = [1, 2].map((i) => (across ? api.coord([api.value(i), api.value(0)]) : api.coord([api.value(0), api.value(i)])));
      const cap = across ? [0, 5] : [5, 0];
      const line = (a, b) => ({ type: "line", shape: { x1: a[0], y1: a[1], x2: b[0], y2: b[1] }, style: { stroke: colour, lineWidth: 1.5, opacity: 0.8 } });
      const end = (at) => line([at[0] - cap[0], at[1] - cap[1]], [at[0] + cap[0], at[1] + cap[1]]);
      return { type: "group", children: [line(low, high), end(low), end(high)] };
    },
  };
}

export function loadAxis(theme, name, loads) {
  return {
    type: loads.length > 1 ? "log" : "value", logBase: 2, name, nameLocation: "middle", nameGap: 28, nameTextStyle: { color: theme.soft },
    min: loads[0] * (loads.length > 1 ? 0.85 : 0.5), max: loads[loads.length - 1] * (loads.length > 1 ? 1.18 : 1.5),
    axisLabel: { color: theme.soft, customValues: loads, formatter: (v) => amount(v).replace(/\.?0+$/, ""), hideOverlap: true },
    axisTick: { customValues: loads }, splitLine: { show: false }, axisLine: { lineStyle: { color: theme.line } },
  };
}

/** 1, 2 or 5 times a power of ten, at or below (above) a value. */
const round = (value, up) => {
  const power = 10 ** Math.floor(Math.log10(value));
  const steps = [1, 2, 5, 10].map((step) => step * power);
  return up ? steps.find((step) => step >= value * 0.999999) : steps.filter((step) => step <= value * 1.000001).pop();
};

export function valueAxis(theme, log, extra = {}) {
  return {
    type: log ? "log" : "value",
    min: log ? ({ min }) => (min > 0 ? round(min, false) : undefined) : 0,
    max: log ? ({ max }) => (max > 0 ? round(max, true) : undefined) : undefined,
    axisLabel: { color: theme.soft, hideOverlap: true, formatter: (v) => amount(v).replace(/(\.\d*?)0+$/, "$1").replace(/\.$/, "") },
    splitLine: { lineStyle: { color: theme.line } }, axisLine: { show: false }, nameTextStyle: { color: theme.soft }, ...extra,
  };
}

function pareto(parent, data, simulated, click) {
  const points = data.runs.map((run) =>
    run.levels
      .filter((level) => !level.withheld && level.summary.tpot_s.mean && level.summary.output_throughput_tps)
      .map((level) => ({ level, x: 1 / level.summary.tpot_s.mean, y: level.summary.output_throughput_tps / Math.max(run.gpus, 1) })),
  );
  const unit = data.runs.every((run) => run.gpus) ? "a GPU" : "a server";
  figure(parent, {
    id: "chart-pareto",
    title: `Output tokens/s ${unit} against tokens/s of one user`,
    note: "A user's speed is one over the mean TPOT. Further up and to the right is better.",
    log: false, simulated, click,
    words: () => points.map((run) => run.map((p) => `${p.level.words}: ${amount(p.y)} tokens/s ${unit} at ${amount(p.x)} for each user`).join(", ")).join("; "),
    make: (theme, state) => {
      if (!points.some((run) => run.length)) return null;
      return {
        grid: { left: 64, right: 24, top: 34, bottom: 46 },
        legend: data.runs.length > 1 ? { top: 0, left: 0, right: simulated ? 90 : 0, textStyle: { color: theme.ink, fontSize: 11 } } : undefined,
        tooltip: tooltip(theme, ({ data: { level, value } }) => `<b>${escape(level().words)}</b><br>${amount(value[1])} tokens/s ${unit}<br>${amount(value[0])} tokens/s of one user, TPOT ${ms(1 / value[0])} ms${verdictLines(level())}`),
        xAxis: valueAxis(theme, state.log, { name: "tokens/s of one user", nameLocation: "middle", nameGap: 28, splitLine: { show: false } }),
        yAxis: valueAxis(theme, state.log),
        series: points.map((run, r) => {
          const colour = theme.series[r % theme.series.length];
          return {
            name: data.runs[r].letter || data.runs[r].name, type: "line", symbol: "circle", symbolSize: 9, lineStyle: { color: colour, width: 2 },
            itemStyle: { color: colour, borderColor: colour, borderWidth: 2 },
            label: { show: true, position: "top", formatter: (p) => p.data.level().name, color: theme.soft, fontSize: 10 },
            data: run.map((p) => ({ value: [p.x, p.y], level: () => p.level, itemStyle: p.level.valid ? undefined : { color: theme.card, borderType: "dashed" } })),
          };
        }),
      };
    },
  });
}
