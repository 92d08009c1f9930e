// report.html: what is drawn from the data of the page. Its text and tables are in the page itself.

import { readData } from "./data.js";
import { drawAll, element, save } from "./figure.js";
import { forestChart } from "./forest.js";
import { kernelRows, waterfallCharts } from "./kernels.js";
import { distributionCharts, levelCharts } from "./level.js";
import { loadCharts } from "./load.js";
import { fill, whatIf } from "./whatif.js";

const place = (name) => document.getElementById(name);

async function start() {
  const data = await readData(place("loadgen-data").textContent.trim());
  const levels = data.runs.flatMap((run) => run.levels);
  window.loadgen = { data, drawAll };
  if (levels.length) {
    const focus = levelSection(data, levels);
    loadCharts(place("charts-load"), data, focus);
    distributionCharts(place("charts-percentiles"), data);
    window.loadgen.whatIf = whatIf(place("whatif-form"), data, data.initial);
  }
  data.runs.forEach((run, i) => {
    const holder = place(`charts-kernels-${i}`);
    if (!holder) return;
    waterfallCharts(holder, run);
    const table = element("table", {});
    fill(table, "Every kernel that was timed", ["Kernel", "Case", "Implementation", "us", "GB/s", "TFLOP/s", "Of the roof", "Against the best other"], kernelRows(run));
    holder.after(element("details", {}, element("summary", {}, `All ${kernelRows(run).length} timings`), element("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Every kernel that was timed" }, table)));
  });
  if (data.comparison) forestChart(place("charts-comparison"), data.comparison);
  if (levels.length) downloads(data);
  document.documentElement.dataset.ready = "true";
  // The place that the address names did not have its height before.
  if (location.hash && !location.hash.startsWith("#level=")) document.getElementById(location.hash.slice(1))?.scrollIntoView();
}

/** The choice of a level: by its list, a click on a chart, a row of the table, or the address. Returns what a click calls. */
function levelSection(data, levels) {
  const select = element("select", { id: "level-choice" }, ...levels.map((level, i) => element("option", { value: String(i) }, `${level.run.letter ? `${level.run.letter}: ` : ""}${level.words}${level.valid ? "" : `, ${level.summary.verdict.status}`}`)));
  const about = element("p", { id: "level-verdict" });
  place("level-form").append(element("label", { for: "level-choice" }, "Level ", select), about);
  const charts = levelCharts(place("charts-level"), data);
  const rows = [...document.querySelectorAll("tr[data-level]")];
  const show = (level, named) => {
    select.value = String(levels.indexOf(level));
    about.textContent = level.valid ? "VALID" : level.summary.verdict.reasons.map((r) => `${r.status}: ${r.text}. What to do: ${r.advice}.`).join(" ");
    about.className = level.valid ? "good" : "bad";
    for (const row of rows) row.classList.toggle("focus", row.dataset.level === `${data.runs.indexOf(level.run)}.${level.index}`);
    if (named) history.replaceState(null, "", `#level=${encodeURIComponent(level.key)}`);
    charts.show(level);
  };
  select.addEventListener("change", () => show(levels[Number(select.value)], true));
  for (const row of rows) {
    const [run, index] = row.dataset.level.split(".").map(Number);
    const button = row.querySelector("button.pick");
    button?.addEventListener("click", () => {
      show(data.runs[run].levels[index], true);
      place("level").scrollIntoView();
    });
  }
  const wanted = () => (location.hash.startsWith("#level=") ? levels.find((level) => level.key === decodeURIComponent(location.hash.slice(7))) : undefined);
  addEventListener("hashchange", () => {
    if (wanted()) show(wanted(), false);
  });
  show(wanted() ?? levels.reduce((most, level) => (level.valid && (!most.valid || level.value >= most.value) ? level : most)), false);
  if (wanted()) requestAnimationFrame(() => place("level").scrollIntoView());
  return (level) => show(level, true);
}

function downloads(data) {
  const holder = place("downloads");
  const blob = (text, type) => URL.createObjectURL(new Blob([text], { type }));
  const button = (label, name, make, type) => holder.append(element("button", { type: "button", onclick: () => save(blob(make(), type), name) }, label));
  button("Summary as JSON", "summary.json", () => JSON.stringify(Object.fromEntries(data.runs.map((run) => [run.name, run.levels.map((level) => level.summary)])), null, 2), "application/json");
  button("Levels as CSV", "levels.csv", () => data.csv, "text/csv");
  button("Requests as CSV", "requests.csv", () => requestsCsv(data), "text/csv");
}

function requestsCsv(data) {
  const names = Object.keys(data.runs.flatMap((run) => run.levels)[0]?.requests ?? {});
  const quote = (text) => (/[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
  const lines = [["run", "level", ...names].join(",")];
  for (const run of data.runs) {
    for (const level of run.levels) {
      const columns = names.map((name) => level.requests[name]);
      for (let i = 0; i < columns[0].length; i++) {
        lines.push([quote(run.name), quote(level.name), ...columns.map((values) => (Number.isNaN(values[i]) ? "" : values[i]))].join(","));
      }
    }
  }
  return lines.join("\r\n") + "\r\n";
}

start();
