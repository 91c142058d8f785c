// Text from the store only ever becomes text: nothing here writes markup.
const make = (tag, attributes, ...children) => {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) node.setAttribute(name, value);
  node.append(...children.filter((each) => each !== null && each !== undefined));
  return node;
};
const byId = (id) => document.getElementById(id);

// The cells, by words of their id and by state
const filter = byId("filter");
const filterText = byId("filter-text");
const filterButtons = [...filter.querySelectorAll("button")];
const applyFilter = () => {
  const words = filterText.value.toLowerCase().split(/\s+/).filter(Boolean);
  const states = filterButtons.filter((each) => each.getAttribute("aria-pressed") === "true")
    .map((each) => each.dataset.state);
  const fits = (id) => words.every((word) => id.includes(word));
  const on = words.length > 0 || states.length > 0;
  let found = 0;
  for (const part of document.querySelectorAll("section[data-image]")) {
    let here = 0;
    for (const body of part.querySelectorAll(".grid tbody")) {
      let lines = 0;
      for (const row of body.querySelectorAll("tr:has(td)")) {
        const cells = [...row.querySelectorAll("td[data-id]")].filter((cell) =>
          fits(cell.dataset.id.toLowerCase()) &&
          (!states.length || states.some((state) => cell.classList.contains(state))));
        row.hidden = on && !cells.length;
        found += cells.length;
        lines += cells.length;
      }
      body.hidden = on && !lines;
      here += lines;
    }
    for (const panel of part.querySelectorAll("figure[data-id]")) {
      panel.hidden = on && !fits(panel.dataset.id.toLowerCase());
    }
    part.hidden = on && !here;
  }
  byId("filter-said").textContent = on ? `${found} cells fit` : "";
};
filter.hidden = false;
filter.addEventListener("submit", (event) => event.preventDefault());
filterText.addEventListener("input", applyFilter);
for (const button of filterButtons) {
  button.addEventListener("click", () => {
    button.setAttribute("aria-pressed", String(button.getAttribute("aria-pressed") !== "true"));
    applyFilter();
  });
}

// A comparison of any two images
const VERDICT = 0, P50 = 1, P95 = 2, RECIPE = 3, PLAN_BYTES = 4, GATES = 5;
const MOST = 200;
const NOTICED = 0.05;
let figures = null;
const short = (digest) => digest.replace("sha256:", "").slice(0, 12);
const size = (bytes) => {
  if (bytes === null || bytes === undefined) return "–";
  for (const [unit, one] of [["GB", 1e9], ["MB", 1e6], ["kB", 1e3]]) {
    if (Math.abs(bytes) >= 0.99995 * one) return `${(bytes / one).toFixed(1)} ${unit}`;
  }
  return `${bytes} B`;
};
const ms = (value) => value === null || value === undefined ? "–"
  : `${value.toFixed(value < 10 ? 2 : value < 100 ? 1 : 0)} ms`;
const change = (before, after, words) => {
  if (before === null || after === null || before === undefined || after === undefined) return "–";
  if (before === after) return "same";
  const percent = before ? ` (${after > before ? "+" : "−"}${Math.abs(100 * (after / before - 1)).toFixed(1)} %)` : "";
  return `${after > before ? "+" : "−"}${words(Math.abs(after - before))}${percent}`;
};
const state = (text) => {
  const shown = text || "no evidence";
  return make("span", { class: `s ${shown.replaceAll(" ", "-")}` }, shown);
};
const table = (title, header, rows, left = 0) => {
  const head = make("tr", null, ...header.map(([text, kind]) => make("th", { scope: "col", class: kind || "" }, text)));
  const lines = rows.map((row) => make("tr", null, ...row.map((each, at) =>
    make(at ? "td" : "th", at ? { class: header[at][1] || "" } : { scope: "row", class: header[at][1] || "" }, each))));
  const body = make("div", { class: "scroll", role: "group", "aria-label": title, tabindex: "0" },
    make("table", null, make("thead", null, head), make("tbody", null, ...lines)));
  const more = left > 0 ? make("p", { class: "soft" }, `and ${left} more`) : null;
  return make("div", null, make("h3", null, title), body, more);
};
const noted = (title, text) => make("div", null, make("h3", null, title), make("p", { class: "soft" }, text));

const sizesTable = (a, b) => table("Sizes",
  [["size"], ["before", "n"], ["after", "n"], ["change", "n"], ["budget after", "n"]],
  Object.keys(a.sizes).map((name) => {
    const [before] = a.sizes[name];
    const [after, limit] = b.sizes[name];
    const over = limit !== null && after > limit;
    return [name.replaceAll("_", " "), size(before), size(after), change(before, after, size),
      limit === null ? "no limit" : make("span", over ? { class: "bad" } : null, `${size(limit)}${over ? " OVER" : ""}`)];
  }));
const versionsTable = (a, b) => {
  const rows = [];
  for (const [kind, word] of [["pins", "pinned"], ["found", "in the image"]]) {
    for (const name of new Set([...Object.keys(a[kind]), ...Object.keys(b[kind])])) {
      const [before, after] = [a[kind][name], b[kind][name]];
      if (before !== after) rows.push([name, word, before ?? "absent", after ?? "absent"]);
    }
  }
  return rows.length ? table("Versions", [["of"], ["where"], ["before"], ["after"]], rows)
    : noted("Versions", "Pins and what was found in the images are the same.");
};
const pairsOf = (a, b) => [...new Set([...Object.keys(a.cells), ...Object.keys(b.cells)])]
  .sort((one, other) => figures.keys[one].localeCompare(figures.keys[other], "en", { numeric: true }))
  .map((key) => ({ id: figures.keys[key], before: a.cells[key], after: b.cells[key] }));
const verdictsTable = (pairs) => {
  const rows = pairs.filter(({ before, after }) => before?.[VERDICT] !== after?.[VERDICT] ||
    (before?.[GATES] ?? "") !== (after?.[GATES] ?? ""));
  if (!rows.length) return noted("Verdicts and gates", `The same for all ${pairs.length} cells.`);
  return table("Verdicts and gates", [["cell"], ["before"], ["after"], ["failed gates after"]],
    rows.slice(0, MOST).map(({ id, before, after }) =>
      [id, state(before?.[VERDICT]), state(after?.[VERDICT]), after?.[GATES] || "–"]), rows.length - MOST);
};
const latencyTable = (pairs) => {
  const timed = pairs.filter(({ before, after }) => before?.[P50] && after?.[P50])
    .map((pair) => ({ ...pair, ratio: pair.after[P50] / pair.before[P50] }));
  const moved = timed.filter(({ ratio }) => Math.abs(ratio - 1) > NOTICED)
    .sort((one, other) => other.ratio - one.ratio);
  if (!timed.length) return noted("Latencies", "No cell was timed in both.");
  if (!moved.length) return noted("Latencies", `Within 5 % for all ${timed.length} cells that were timed in both.`);
  return table("Latencies more than 5 % apart",
    [["cell"], ["P50 before", "n"], ["P50 after", "n"], ["change", "n"], ["P95 before", "n"], ["P95 after", "n"]],
    moved.slice(0, MOST).map(({ id, before, after }) => [id, ms(before[P50]), ms(after[P50]),
      change(before[P50], after[P50], ms), ms(before[P95]), ms(after[P95])]), moved.length - MOST);
};
const plansTable = (pairs) => {
  const planned = pairs.filter(({ before, after }) => before?.[RECIPE] || after?.[RECIPE]);
  if (!planned.length) return null;
  const other = planned.filter(({ before, after }) => before?.[RECIPE] !== after?.[RECIPE]);
  if (!other.length) return noted("Plans", `All ${planned.length} have the same recipe on both sides.`);
  return table(`Plans (${planned.length - other.length} of ${planned.length} have the same recipe)`,
    [["cell"], ["recipe before"], ["recipe after"], ["size before", "n"], ["size after", "n"]],
    other.slice(0, MOST).map(({ id, before, after }) => [id, before?.[RECIPE] ?? "absent", after?.[RECIPE] ?? "absent",
      size(before?.[PLAN_BYTES]), size(after?.[PLAN_BYTES])]), other.length - MOST);
};
const rate = (value) => value >= 100 || !value ? value.toFixed(0) : String(Number(value.toPrecision(3)));
const percent = (before, after) => before ? `${after >= before ? "+" : "−"}${Math.abs(100 * (after / before - 1)).toFixed(1)} %` : "–";
const loadsTable = (a, b) => {
  if (!a.loads.length && !b.loads.length) return null;
  const rows = [];
  let alone = 0;
  for (const [workload, cell, gpu, steps, series] of b.loads) {
    const then = a.loads.find((each) => each[0] === workload && each[1] === cell && each[2] === gpu && each[3] === steps);
    for (const [batch, concurrency, p50, p95, items] of series) {
      const same = then?.[4].find((each) => each[0] === batch && each[1] === concurrency);
      if (!same) { alone += 1; continue; }
      rows.push([`${workload}: ${figures.keys[cell]}`, gpu, batch, concurrency, ms(same[2]), ms(p50), percent(same[2], p50),
        ms(same[3]), ms(p95), rate(same[4]), rate(items), percent(same[4], items)]);
    }
  }
  const less = a.loads.reduce((sum, each) => sum + each[4].length, 0) - rows.length;
  const text = `${alone + less} batch sizes and concurrencies were measured on one of the two only, on another GPU, or with other steps.`;
  if (!rows.length) return noted("Load", text);
  const shown = table("Load, of the same workload, cell, GPU and steps",
    [["workload and cell"], ["on"], ["batch", "n"], ["concurrency", "n"], ["P50 before", "n"], ["P50 after", "n"], ["change", "n"],
      ["P95 before", "n"], ["P95 after", "n"], ["items/s before", "n"], ["items/s after", "n"], ["change", "n"]],
    rows.slice(0, MOST), rows.length - MOST);
  if (alone + less) shown.append(make("p", { class: "soft" }, text));
  return shown;
};
const WORDS = { breaks: "breaks", attention: "look", none: "note" };
const followsList = (follows, a, b) => {
  const title = make("h3", null, "What follows");
  if (!follows) {
    const command = `planyard snapshot diff ${a.digest} ${b.digest}`;
    return make("div", null, title, make("p", null, "Worked out beforehand only for neighbours in time and for channels. This command says it for these two:"),
      make("div", { class: "command" }, make("code", null, command)));
  }
  const lines = follows.changes.map((each) => make("li", null,
    make("span", { class: `s ${each.severity}` }, WORDS[each.severity] ?? each.severity), " ",
    make("b", null, each.subject), ` ${each.before} → ${each.after}: ${each.consequence}`,
    each.why ? make("span", { class: "soft" }, ` (${each.why})`) : null,
    each.cells.length > 1 ? make("div", { class: "soft" }, each.cells.join(", ") + (each.more ? ` and ${each.more} more` : "")) : null));
  if (!lines.length) lines.push(make("li", null, "No difference in what was proved."));
  return make("div", null, title, make("ul", { class: "plain" }, ...lines),
    follows.left_out ? make("p", { class: "soft" }, `${follows.left_out} more changes are not listed.`) : null,
    follows.work.length ? make("p", null, `In all: ${follows.work.join("; ")}.`) : null,
    follows.not_compared.length ? make("p", { class: "soft" }, `Not compared: ${follows.not_compared.join("; ")}.`) : null);
};

const pick = byId("pick");
const [before, after] = [byId("pick-before"), byId("pick-after")];
const compare = () => {
  const [at, to] = [Number(before.value), Number(after.value)];
  const [a, b] = [figures.images[at], figures.images[to]];
  const target = byId("compared");
  if (at === to) {
    target.replaceChildren(make("p", { class: "soft" }, "Before and after are the same image."));
    return;
  }
  const pairs = pairsOf(a, b);
  target.replaceChildren(...[sizesTable(a, b), followsList(figures.follows[`${at}-${to}`], a, b),
    verdictsTable(pairs), latencyTable(pairs), loadsTable(a, b), plansTable(pairs), versionsTable(a, b)].filter(Boolean));
};
const optionsOf = () => {
  const names = [...new Set(figures.images.map((each) => each.name))];
  return names.map((name) => make("optgroup", { label: name },
    ...figures.images.map((each, at) => [each, at]).filter(([each]) => each.name === name).reverse()
      .map(([each, at]) => make("option", { value: at },
        `${short(each.digest)}  ${each.created.slice(0, 16).replace("T", " ")}  ${each.channels.join(" ")}`))));
};
const startComparing = () => {
  if (figures) return;
  figures = JSON.parse(byId("figures").textContent);
  if (figures.images.length < 2) {
    byId("compared").replaceChildren(make("p", { class: "soft" }, "The store has fewer than two images to compare."));
    return;
  }
  before.append(...optionsOf());
  after.append(...optionsOf());
  const last = [...figures.images.keys()].reverse();
  const pair = last.flatMap((to) => last.filter((at) => at < to).map((at) => [at, to]))
    .find(([at, to]) => figures.follows[`${at}-${to}`]) ?? [last[1], last[0]];
  const asked = /^#compare=([0-9a-f]{12,64}),([0-9a-f]{12,64})$/.exec(location.hash);
  const found = asked ? [asked[1], asked[2]].map((hex) => figures.images.findIndex((each) => each.digest.startsWith(`sha256:${hex}`))) : [];
  [before.value, after.value] = found.length && Math.min(...found) >= 0 ? found : pair;
  pick.hidden = false;
  compare();
  if (asked) byId("compare").scrollIntoView();
};
pick.addEventListener("submit", (event) => event.preventDefault());
pick.addEventListener("change", () => {
  compare();
  const [a, b] = [before, after].map((each) => short(figures.images[Number(each.value)].digest));
  try { history.replaceState(null, "", `#compare=${a},${b}`); } catch { /* a page that has no address */ }
});
// The figures are read when the comparison comes near, so that the grid is there at once.
if (location.hash.startsWith("#compare=")) {
  startComparing();
} else {
  new IntersectionObserver((entries, observer) => {
    if (entries.some((each) => each.isIntersecting)) {
      observer.disconnect();
      startComparing();
    }
  }, { rootMargin: "600px" }).observe(byId("compare"));
}
