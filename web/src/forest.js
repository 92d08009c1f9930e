// The comparison of two runs as a forest plot: ratios with their intervals, around 1.

import { escape, figure } from "./figure.js";
import { tooltip, whiskers } from "./load.js";
import { amount, digits } from "./words.js";

export function forestChart(parent, comparison) {
  const rows = [...comparison.levels.map((level) => [level.name, level.effects]), ["all levels", comparison.overall]]
    .flatMap(([name, effects]) => effects.filter((e) => e.ratio !== null && e.ratio_ci95).map((effect) => ({ name, effect })));
  const label = ({ name, effect }) => `${name}: ${effect.metric.replace(/_(s|tps|rps)$/, "").replace("output_throughput", "tokens/s").toUpperCase().replace("TOKENS/S", "tokens/s")} ${effect.statistic}`;
  figure(parent, {
    id: "forest", title: "B against A: ratios", simulated: comparison.simulated, height: 70 + 20 * Math.max(rows.length, 3),
    note: "Left of 1 is lower. Bars are 95 % intervals; filled dots are differences that hold after a correction for the number of levels (Holm).",
    empty: comparison.comparable ? "No ratio has an interval." : "Not comparable: see the findings.",
    words: () => rows.map((row) => `${label(row)} ${digits(row.effect.ratio, 3)} (${row.effect.word})`).join("; "),
    make: (theme) => {
      if (!rows.length) return null;
      const all = rows.flatMap((row) => row.effect.ratio_ci95).filter((v) => v > 0);
      const far = Math.max(1.05, ...all.map((v) => Math.max(v, 1 / v)));
      const colour = (e) => ({ faster: theme.good, slower: theme.bad })[e.word] || theme.soft;
      return {
        grid: { left: 190, right: 24, top: 16, bottom: 44 },
        tooltip: tooltip(theme, ({ data: { row } }) => {
          const e = row.effect;
          return `<b>${escape(label(row))}</b><br>ratio ${digits(e.ratio, 3)}, 95 %: ${e.ratio_ci95.map((v) => digits(v, 3)).join(" .. ")}<br>${escape(e.word)}${e.detectable ? `; the least that would have been seen: ${amount(e.detectable * 100)} %` : ""}`;
        }),
        xAxis: { type: "log", logBase: 10, min: 1 / far, max: far, name: "ratio, B over A", nameLocation: "middle", nameGap: 26, nameTextStyle: { color: theme.soft }, axisLabel: { color: theme.soft, formatter: (v) => digits(v, 2), customValues: [1 / far, 1 / Math.sqrt(far), 1, Math.sqrt(far), far] }, axisTick: { customValues: [1 / far, 1 / Math.sqrt(far), 1, Math.sqrt(far), far] }, splitLine: { show: false }, axisLine: { lineStyle: { color: theme.line } } },
        yAxis: { type: "category", inverse: true, data: rows.map(label), axisLabel: { color: theme.soft, fontSize: 11 }, axisTick: { show: false }, axisLine: { lineStyle: { color: theme.line } } },
        series: [
          {
            name: "ratio", type: "scatter", symbolSize: 9,
            data: rows.map((row, i) => ({ value: [row.effect.ratio, i], row, itemStyle: { color: ["faster", "slower"].includes(row.effect.word) ? colour(row.effect) : theme.card, borderColor: colour(row.effect), borderWidth: 2 } })),
            markLine: { silent: true, symbol: "none", label: { show: false }, lineStyle: { color: theme.ink, type: "dashed" }, data: [{ xAxis: 1 }] },
          },
          ...["faster", "slower", "no detectable difference", "n/a"].map((word) => whiskers(word, { faster: theme.good, slower: theme.bad }[word] || theme.soft, rows.flatMap((row, i) => (row.effect.word === word ? [[i, row.effect.ratio_ci95[0], row.effect.ratio_ci95[1]]] : [])), true)),
        ],
      };
    },
  });
}
