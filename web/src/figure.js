// A figure: a caption, buttons, and a chart that is drawn when it comes into view.

import { init, use } from "echarts/core";
import { BarChart, CustomChart, LineChart, ScatterChart } from "echarts/charts";
import {
  DataZoomInsideComponent,
  GridComponent,
  LegendComponent,
  MarkAreaComponent,
  MarkLineComponent,
  TitleComponent,
  TooltipComponent,
} from "echarts/components";
import { CanvasRenderer, SVGRenderer } from "echarts/renderers";

use([
  BarChart, CustomChart, LineChart, ScatterChart,
  DataZoomInsideComponent, GridComponent, LegendComponent, MarkAreaComponent, MarkLineComponent, TitleComponent, TooltipComponent,
  CanvasRenderer, SVGRenderer,
]);

const figures = [];

export const element = (tag, attributes = {}, ...children) => {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value !== null && value !== false) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null));
  return made;
};

export const escape = (text) =>
  String(text).replace(/[&<>"']/g, (c) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#39;" })[c]);

export function colours() {
  const style = getComputedStyle(document.documentElement);
  const of = (name) => style.getPropertyValue(`--${name}`).trim();
  return {
    ink: of("ink"), soft: of("soft"), line: of("line"), back: of("back"), card: of("card"), bad: of("bad"), good: of("good"),
    series: ["a", "b", "c", "d", "e", "f", "g", "h"].map(of),
  };
}

/** Adds a figure to `parent`.
 *
 *  make(theme, state): the chart's option, or null where there is nothing to show.
 *  state.log: whether the values' axis is logarithmic. words(): the figure in words, for who cannot see it. */
export function figure(parent, { id, title, note = null, empty = "Nothing to show.", log = null, height = 280, renderer = "svg", simulated, words, make, click = null }) {
  const state = { log: log === true };
  const holder = element("div", { class: "chart", style: `height:${height}px`, tabindex: "0", role: "img" });
  const message = element("p", { class: "empty", hidden: true }, empty);
  const buttons = [];
  const button = (text, label, action, attributes = {}) => {
    buttons.push(element("button", { type: "button", "aria-label": `${label}: ${title}`, title: label, onclick: action, ...attributes }, text));
    return buttons[buttons.length - 1];
  };
  if (log !== null) {
    const toggle = button("log", "Logarithmic axis", () => {
      state.log = !state.log;
      toggle.setAttribute("aria-pressed", state.log);
      draw();
    }, { "aria-pressed": String(state.log) });
  }
  button("reset", "Reset", () => {
    state.log = log === true;
    shown?.dispatchAction({ type: "legendAllSelect" });
    draw();
  });
  button("PNG", "Download as PNG", () => download("png"));
  button("SVG", "Download as SVG", () => download("svg"));
  const caption = element("figcaption", {}, element("span", {}, title + (simulated ? " (SIMULATED)" : "")), element("span", { class: "tools" }, ...buttons));
  const box = element("figure", { id }, caption, holder, message, note ? element("p", { class: "note" }, note) : null);
  parent.append(box);

  let shown = null;
  let option = null;

  function complete(theme) {
    const made = make(theme, state);
    if (made === null) return null;
    return {
      animation: false,
      backgroundColor: "transparent",
      textStyle: { color: theme.soft, fontFamily: 'system-ui, -apple-system, "Segoe UI", sans-serif' },
      ...made,
      ...(simulated && {
        title: { text: "SIMULATED", right: 8, top: 0, textStyle: { color: theme.bad, fontSize: 11, fontWeight: 600 } },
      }),
    };
  }

  function draw() {
    const theme = colours();
    option = complete(theme);
    message.hidden = option !== null;
    holder.hidden = option === null;
    holder.setAttribute("aria-label", option === null ? `${title}: ${empty}` : `${title}${simulated ? " (SIMULATED)" : ""}. ${words()}`);
    for (const one of buttons) one.disabled = option === null;
    if (option === null) return;
    if (shown === null) {
      shown = init(holder, null, { renderer });
      if (click) shown.on("click", click);
    }
    shown.setOption(option, { notMerge: true });
  }

  function download(kind) {
    const away = document.createElement("div");
    const [width, tall] = [Math.max(holder.clientWidth, 640), Math.max(holder.clientHeight, 320)];
    const theme = colours();
    const drawn = init(away, null, { renderer: kind === "svg" ? "svg" : "canvas", width, height: tall });
    drawn.setOption({ ...complete(theme), backgroundColor: theme.back });
    const url = drawn.getDataURL({ type: kind, pixelRatio: 2, backgroundColor: theme.back });
    drawn.dispose();
    save(url, `${id}.${kind}`);
  }

  // The arrows go from point to point, as the mouse does.
  let place = -1;
  holder.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step || shown === null) return;
    event.preventDefault();
    const count = option.series[0]?.data?.length || 0;
    if (!count) return;
    place = (place + step + count) % count;
    shown.dispatchAction({ type: "showTip", seriesIndex: 0, dataIndex: place });
  });
  holder.addEventListener("blur", () => shown?.dispatchAction({ type: "hideTip" }));

  const one = { box, draw, drawn: () => option, resize: () => shown?.resize() };
  figures.push(one);
  watcher.observe(box);
  one.box.loadgen = one;
  return one;
}

const watcher = new IntersectionObserver(
  (entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      watcher.unobserve(entry.target);
      entry.target.loadgen.draw();
    }
  },
  { rootMargin: "400px" },
);

export function drawAll() {
  for (const one of figures) {
    watcher.unobserve(one.box);
    one.draw();
  }
}

/** Draws again what has been drawn. */
function redraw() {
  for (const one of figures) if (one.drawn() !== null) one.draw();
}

export function save(url, name) {
  const link = element("a", { href: url, download: name });
  document.body.append(link);
  link.click();
  link.remove();
}

addEventListener("resize", () => figures.forEach((one) => one.resize()));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
addEventListener("beforeprint", () => {
  drawAll();
  figures.forEach((one) => one.resize());
});
