// The plan in the page: another SLO, price, peak or headroom, and what follows, from the requests themselves.

import { element, escape, figure } from "./figure.js";
import { loadAxis, tooltip, valueAxis, verdictLines, whiskers } from "./load.js";
import { makePlan } from "./plan.js";
import { amount, chance as chanceWords, interval, moneys, percent, whole } from "./words.js";

const METRICS = ["ttft", "tpot", "e2e"];

/** parent: the section; run: what is planned. Returns {plan()} for tests. */
export function whatIf(parent, data, initial) {
  let run = data.runs[0];
  const fields = {};
  const field = (name, label, attributes) => {
    const input = element("input", { id: `whatif-${name}`, inputmode: "decimal", autocomplete: "off", oninput: change, ...attributes });
    fields[name] = input;
    return element("label", { for: `whatif-${name}` }, label, input);
  };
  const choice = (name, label, options, selected) => {
    const select = element("select", { id: `whatif-${name}`, onchange: change }, ...options.map(([value, text]) => element("option", { value, selected: value === selected }, text)));
    fields[name] = select;
    return element("label", { for: `whatif-${name}` }, label, select);
  };
  const limits = METRICS.map((metric) => {
    const given = initial.slos.find((slo) => slo.metric === metric);
    return element("fieldset", {},
      element("legend", {}, metric.toUpperCase()),
      field(metric, "at most, ms", { value: given ? given.limit_us / 1e3 : "", placeholder: "none" }),
      choice(`${metric}-of`, "asked of", [["", "each request"], ["50", "p50"], ["90", "p90"], ["95", "p95"], ["99", "p99"]], given?.percentile ? String(given.percentile) : ""));
  });
  const form = element("form", { class: "whatif", onsubmit: (event) => event.preventDefault() },
    data.runs.length > 1 ? choice("run", "run", data.runs.map((one, i) => [String(i), one.letter]), "0") : null,
    ...limits,
    element("fieldset", {}, element("legend", {}, "Demand"),
      field("attainment", "requests within it, %", { value: initial.attainment * 100 }),
      field("peak", "peak, requests/s", { value: "", placeholder: "one replica" }),
      field("duty", "mean of the peak, %", { value: 100 })),
    element("fieldset", {}, element("legend", {}, "Fleet"),
      field("headroom", "headroom, %", { value: 20 }),
      field("spares", "spare replicas", { value: 0 }),
      field("gpus", "GPUs a replica", { value: Math.max(run.gpus, 1) }),
      field("price", "price of a GPU and hour", { value: "", placeholder: "none" })));
  const message = element("p", { class: "refused", role: "status" });
  const answers = element("dl", { class: "answers", "aria-live": "polite" });
  const table = element("table", {});
  const speeds = element("table", {});
  parent.append(form, message, answers,
    element("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Levels against the SLO" }, table),
    element("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "At a speed for each user" }, speeds));
  const charts = element("div", { class: "charts" });
  parent.append(charts);

  let plan = null;
  const curve = figure(charts, {
    id: "headroom", title: "Headroom: requests within the SLO against load", simulated: data.runs.some((one) => one.simulated), height: 320,
    note: "Bars are 95 % intervals; only where the whole bar is at or above the target does a load keep the SLO. Line: the fit that never rises. Shaded: where the capacity lies. Nothing is said beyond the loads measured.",
    empty: "No load counts.",
    words: () => plan.points.map((p) => `${p.level.words}: ${percent(p.tight.share)} (${p.word})`).join(", "),
    make: (theme) => {
      const known = plan?.points.filter((p) => p.tight.share !== null && p.rate > 0) || [];
      if (!known.length) return null;
      const colour = (p) => ({ holds: theme.good, breaks: theme.bad })[p.word] || theme.soft;
      const counted = known.filter((p) => p.fit !== undefined && p.word !== "not counted");
      const target = known[0].tight.target;
      const rates = [...new Set(known.map((p) => p.rate))].sort((a, b) => a - b);
      const highest = rates[rates.length - 1] * 1.18;
      return {
        grid: { left: 56, right: 20, top: 30, bottom: 46 },
        tooltip: tooltip(theme, ({ data }) => (data.point ? tip(data.point()) : "")),
        xAxis: loadAxis(theme, "requests/s of one replica", rates),
        yAxis: valueAxis(theme, false, { max: 100, name: "%", min: Math.max(0, Math.floor(Math.min(...known.map((p) => (p.tight.ci95?.[0] ?? p.tight.share) * 100)) / 10) * 10 - 5) }),
        series: [
          {
            name: "fit", type: "line", symbol: "none", silent: true, lineStyle: { color: theme.series[0], width: 2 }, data: counted.map((p) => [p.rate, p.fit * 100]),
            markLine: { silent: true, symbol: "none", label: { color: theme.ink, formatter: `target ${percent(target)}`, position: "insideStartBottom" }, lineStyle: { color: theme.ink, type: "dashed" }, data: [{ yAxis: target * 100 }] },
            markArea: plan.capacity ? { silent: true, itemStyle: { color: theme.series[1], opacity: 0.18 }, data: [[{ xAxis: plan.capacity[0] }, { xAxis: plan.capacity[1] ?? highest }]] } : undefined,
          },
          ...["holds", "breaks", "undecided", "not counted"].map((word) => whiskers(word, { holds: theme.good, breaks: theme.bad }[word] || theme.soft, known.filter((p) => p.word === word && p.tight.ci95).map((p) => [p.rate, p.tight.ci95[0] * 100, p.tight.ci95[1] * 100]))),
          {
            name: "share", type: "scatter", symbolSize: 10,
            data: known.map((p) => ({ value: [p.rate, p.tight.share * 100], point: () => p, itemStyle: { color: p.level.valid ? colour(p) : theme.card, borderColor: colour(p), borderWidth: 2, borderType: p.level.valid ? "solid" : "dashed" } })),
          },
        ],
      };
    },
  });

  const chance = figure(charts, {
    id: "chance", title: "Headroom: chance that the SLO is broken, against load", simulated: data.runs.some((one) => one.simulated), height: 320,
    note: "Below 2.5 % a load keeps the SLO, above 97.5 % it breaks it. At a load between two measured ones the chance lies between theirs: the shaded steps.",
    empty: "No load counts.",
    words: () => chances().map((p) => `${p.level.words}: ${chanceWords(p.chance_broken)}`).join(", "),
    make: (theme) => {
      const known = chances();
      if (!known.length) return null;
      const rates = [...new Set(known.map((p) => p.rate))];
      const bands = known.slice(1).map((p, i) => [known[i].rate, p.rate, known[i].chance_broken * 100, p.chance_broken * 100]);
      return {
        grid: { left: 56, right: 20, top: 30, bottom: 46 },
        tooltip: tooltip(theme, ({ data }) => (data.point ? `${tip(data.point())}<br>chance that it breaks the SLO: ${chanceWords(data.point().chance_broken)}` : "")),
        xAxis: loadAxis(theme, "requests/s of one replica", rates),
        yAxis: valueAxis(theme, false, { max: 100, name: "%" }),
        series: [
          {
            name: "between", type: "custom", silent: true, encode: { x: [0, 1], y: [2, 3] }, data: bands,
            renderItem: (_, api) => {
              const [a, b] = [api.coord([api.value(0), api.value(2)]), api.coord([api.value(1), api.value(3)])];
              return { type: "rect", shape: { x: a[0], y: b[1], width: b[0] - a[0], height: Math.max(a[1] - b[1], 1) }, style: { fill: theme.series[0], opacity: 0.18 } };
            },
          },
          {
            name: "chance", type: "scatter", symbolSize: 10, itemStyle: { color: theme.series[0] }, data: known.map((p) => ({ value: [p.rate, p.chance_broken * 100], point: () => p })),
          },
        ],
      };
    },
  });
  const chances = () => (plan?.points ?? []).filter((p) => p.chance_broken !== undefined).sort((a, b) => a.order - b.order);

  /** What the form asks for; names of fields that hold no number are left in `wrong`. */
  function demand() {
    const wrong = [];
    const read = (name, least, most, empty) => {
      const text = fields[name].value.trim();
      const value = text === "" ? empty : Number(text);
      const bad = value !== null && !(value >= least && value <= most);
      fields[name].setAttribute("aria-invalid", String(bad));
      if (bad) wrong.push(fields[name].labels[0].firstChild.textContent);
      return value;
    };
    const slos = METRICS.flatMap((metric) => {
      const limit = read(metric, 1e-3, 1e7, null);
      const of = fields[`${metric}-of`].value;
      return limit === null ? [] : [{ metric, limit_us: limit * 1e3, percentile: of === "" ? null : Number(of) }];
    });
    const asked = {
      slos,
      attainment: read("attainment", 1, 99.999, 99) / 100,
      peak_rps: read("peak", 1e-6, 1e9, null),
      duty: read("duty", 1e-3, 100, 100) / 100,
      headroom: read("headroom", 0, 99.9, 20) / 100,
      spares: Math.round(read("spares", 0, 1e6, 0)),
      gpu_hour: read("price", 1e-9, 1e9, null),
      gpus: Math.round(read("gpus", 1, 1e5, 1)),
    };
    return { asked, wrong };
  }

  function change() {
    if (fields.run) run = data.runs[Number(fields.run.value)];
    const { asked, wrong } = demand();
    plan = null;
    answers.replaceChildren();
    table.replaceChildren();
    speeds.replaceChildren();
    message.hidden = false;
    if (wrong.length) message.textContent = `Not a number that can be meant: ${wrong.join("; ")}.`;
    else if (!asked.slos.length) message.textContent = "Give a limit for TTFT, TPOT or E2E.";
    else {
      plan = makePlan(run.levels, asked);
      message.hidden = plan.refused === null;
      message.textContent = plan.refused ? `NO PLAN: ${plan.refused}.` : "";
      if (plan.refused === null) show(plan, asked);
      levels(plan);
    }
    if (plan === null) plan = { points: [], capacity: null, refused: "" };
    curve.draw();
    chance.draw();
  }

  function show(found, asked) {
    const row = (name, value) => answers.append(element("dt", {}, name), element("dd", { "data-name": name }, value));
    row("capacity of one replica, requests/s", interval(found.capacity));
    row("output tokens/s", interval(found.output_tps));
    row("what binds", found.binds);
    if (found.fleet) {
      const { replicas, replicas_at_best: best } = found.fleet;
      row("replicas for the peak", best === null ? `${whole(replicas)} at most` : best === replicas ? whole(replicas) : `${whole(replicas)} .. ${whole(best)}`);
      row("GPUs", whole(found.fleet.gpus));
    }
    if (found.per_thousand_requests) {
      row("cost at capacity, of 1M output tokens", moneys(found.per_million_output));
      row("of 1M tokens in and out", moneys(found.per_million_total));
      row("of 1,000 requests", moneys(found.per_thousand_requests));
    }
    if (found.fleet?.cost_per_hour) {
      row("cost of the fleet an hour", moneys(found.fleet.cost_per_hour));
      row("a month", moneys(found.fleet.cost_per_month));
      row("of 1M output tokens, at that duty", moneys(found.fleet.per_million_output));
    }
    if (asked.peak_rps === null) row("replicas", "give a peak");
    fill(speeds, "At a speed for each user, in place of the SLO's TPOT", ["Tokens/s for each user", "Requests/s", "Output tokens/s"],
      found.speeds.map((speed) => [String(speed.tokens_per_s), speed.capacity ? interval(speed.capacity) : "cannot be told", interval(speed.output_tps)]));
  }

  function levels(found) {
    fill(table, "What it rests on", ["Load", "Requests/s", "Goodput, requests/s", "Within the SLO", "95 % interval", "Chance that it breaks", "The SLO"],
      found.points.map((p) => [
        p.level.words, amount(p.rate), amount(p.figures.goodput_rps), percent(p.tight.share, 2),
        p.tight.ci95 ? p.tight.ci95.map((v) => percent(v, 2)).join(" .. ") : "n/a", p.chance_broken === undefined ? "" : chanceWords(p.chance_broken), p.word,
      ]), found.points.map((p) => p.level.valid));
  }

  change();
  return { plan: () => plan };
}

function tip(p) {
  return [
    `<b>${escape(p.level.words)}</b>, ${amount(p.rate)} requests/s`,
    `${percent(p.tight.share, 2)} within (${escape(p.tight.name)})`,
    `95 %: ${p.tight.ci95 ? p.tight.ci95.map((v) => percent(v, 2)).join(" .. ") : "n/a"}`,
    `of ${p.tight.requests.toLocaleString("en-US")} requests; target ${percent(p.tight.target)}`,
    p.word,
  ].join("<br>") + verdictLines(p.level);
}

export function fill(table, caption, heads, rows, valid = null) {
  table.replaceChildren(
    element("caption", {}, caption),
    element("thead", {}, element("tr", {}, ...heads.map((head) => element("th", { scope: "col" }, head)))),
    element("tbody", {}, ...rows.map((row, i) =>
      element("tr", valid && !valid[i] ? { class: "bad" } : {}, element("th", { scope: "row" }, row[0]), ...row.slice(1).map((cell) => element("td", {}, cell))))),
  );
}
