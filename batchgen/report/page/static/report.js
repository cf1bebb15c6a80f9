// A grid over any axes, without a build step and without requests beyond this folder: data comes as scripts that call
// `report.index`, `report.rows` and `report.charts`. Texts are set as text and never as HTML.
"use strict";

const report = (() => {
  const NONE = "";
  const OVERSCAN = 3; // rows above and below those that are seen
  const RANKED = 120; // images of a ranking
  const $ = (id) => document.getElementById(id);

  let data = null;
  let order = []; // images that pass the filters, in the order in which the viewer goes through them
  let cells = new Map(); // "row,column" to images
  let fullest = 1; // most images of a cell
  let seen = new Map(); // rows that are drawn, by number
  let current = -1; // image in the viewer
  let blinking = 0; // timer
  let drawnCharts = null;
  const chunks = new Map(); // parameters by chunk, and who waits for them
  const chosen = new Set();
  const state = { view: "grid", rows: NONE, columns: NONE, tabs: NONE, tab: 0, per: 4, filter: {}, score: NONE, order: "high" };

  // Elements

  function element(kind, text, attributes = {}) {
    const made = document.createElement(kind);
    if (text !== null && text !== undefined) made.textContent = text;
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    return made;
  }

  function options(select, names, value) {
    select.replaceChildren(...names.map(([name, text]) => element("option", text, { value: name })));
    select.value = value;
  }

  function table(target, head, rows) {
    const header = element("tr");
    header.append(...head.map((name) => element("th", name, { scope: "col" })));
    const body = rows.map((row) => {
      const line = element("tr");
      line.append(...row.map((cell) => element("td", shown(cell), typeof cell === "number" ? { class: "number" } : {})));
      return line;
    });
    target.replaceChildren(header, ...body);
  }

  const shown = (value) =>
    value === null || value === undefined ? "" : typeof value === "number" && !Number.isInteger(value) ? String(Number(value.toPrecision(5))) : String(value);
  const axis = (name) => data.axes.find((one) => one.name === name);
  const valueAt = (name, number) => axis(name).values[data.at[name][number]];
  const named = (name, number) => (valueAt(name, number) === null ? "none" : String(valueAt(name, number)));

  // State and address

  function readAddress() {
    const given = new URLSearchParams(location.hash.slice(1));
    const axes = new Set(data.axes.map((one) => one.name));
    for (const key of ["rows", "columns", "tabs"]) {
      if (given.has(key) && (axes.has(given.get(key)) || given.get(key) === NONE)) state[key] = given.get(key);
    }
    for (const key of ["view", "score", "order"]) if (given.has(key)) state[key] = given.get(key);
    if (!["grid", "ranking", "charts", "facts"].includes(state.view)) state.view = "grid";
    if (!(state.score in data.scores)) state.score = Object.keys(data.scores)[0] ?? NONE;
    for (const key of ["tab", "per"]) if (/^\d+$/.test(given.get(key) ?? "")) state[key] = Number(given.get(key));
    if (![1, 4, 9].includes(state.per)) state.per = 4;
    state.filter = {};
    for (const one of data.axes) {
      const off = given.get(`not.${one.name}`);
      if (off) state.filter[one.name] = new Set(off.split(".").map(Number).filter((place) => place < one.values.length));
    }
    const open = given.get("open");
    current = open === null ? -1 : data.ids.indexOf(open);
  }

  function writeAddress() {
    const said = new URLSearchParams();
    for (const key of ["view", "rows", "columns", "tabs", "tab", "per", "score", "order"]) said.set(key, state[key]);
    for (const [name, off] of Object.entries(state.filter)) if (off.size) said.set(`not.${name}`, [...off].join("."));
    if (current >= 0) said.set("open", data.ids[current]);
    history.replaceState(null, "", `#${said}`);
  }

  function changed() {
    writeAddress();
    draw();
  }

  // Images

  function thumbnail(number, side) {
    const { per, across, side: full } = data.sprite;
    const place = number % per;
    const scale = side / full;
    const button = element("button", null, { type: "button", class: "thumb", "data-number": number });
    button.setAttribute("aria-label", data.links[number] === null ? `${data.ids[number]}, not readable` : data.ids[number]);
    button.style.cssText = `width:${side + 4}px;height:${side + 4}px;background-size:${across * full * scale}px auto;` +
      `background-image:url("thumbs/${String(Math.floor(number / per)).padStart(3, "0")}.webp");` +
      `background-position:-${(place % across) * side}px -${Math.floor(place / across) * side}px`;
    if (chosen.has(number)) button.classList.add("chosen");
    return button;
  }

  function pass(number, except = null) {
    return data.axes.every((one) => one.name === except || !state.filter[one.name]?.has(data.at[one.name][number]));
  }

  // Grid

  const places = (name) =>
    name === NONE ? [0] : axis(name).values.map((_, place) => place).filter((place) => !state.filter[name]?.has(place));
  const placeOf = (name, number) => (name === NONE ? 0 : data.at[name][number]);

  function drawGrid() {
    for (const key of ["rows", "columns", "tabs"]) {
      const names = data.axes.map((one) => [one.name, `${one.name} (${one.values.length})`]);
      options($(key), [[NONE, "none"], ...names], state[key]);
    }
    $("per").value = state.per;
    drawTabs();
    cells = new Map();
    order = [];
    for (let number = 0; number < data.ids.length; number++) {
      if (!pass(number) || (state.tabs !== NONE && data.at[state.tabs][number] !== state.tab)) continue;
      order.push(number);
      const key = `${placeOf(state.rows, number)},${placeOf(state.columns, number)}`;
      if (cells.has(key)) cells.get(key).push(number);
      else cells.set(key, [number]);
    }
    fullest = Math.max(1, ...[...cells.values()].map((own) => own.length));
    const down = places(state.rows), across = places(state.columns);
    const rank = (key) => new Map(places(key).map((place, at) => [place, at]));
    const rowRank = rank(state.rows), columnRank = rank(state.columns);
    order.sort((a, b) => rowRank.get(placeOf(state.rows, a)) - rowRank.get(placeOf(state.rows, b)) ||
      columnRank.get(placeOf(state.columns, a)) - columnRank.get(placeOf(state.columns, b)) || a - b);
    $("count").textContent = `${order.length.toLocaleString("en")} of ${data.ids.length.toLocaleString("en")} images`;
    const width = cellWidth();
    $("grid").style.setProperty("--name", state.rows === NONE ? "0px" : innerWidth < 600 ? "76px" : "150px");
    const corner = element("div", state.rows, { class: "corner" });
    $("head").replaceChildren(corner, ...across.map((place) => {
      const head = element("div", state.columns === NONE ? "" : textOf(state.columns, place), { role: "columnheader" });
      head.style.width = `${width}px`;
      return head;
    }));
    seen = new Map();
    $("body").replaceChildren();
    $("body").style.height = `${down.length * rowHeight()}px`;
    drawRows();
  }

  const textOf = (name, place) => (axis(name).values[place] === null ? "none" : String(axis(name).values[place]));
  const most = () => Math.min(state.per, fullest); // images that a cell shows
  const perLine = () => Math.ceil(Math.sqrt(most()));
  const side = () => [128, 88, 64][perLine() - 1];
  const cellWidth = () => perLine() * (side() + 6) + 4;
  const rowHeight = () => Math.ceil(most() / perLine()) * (side() + 6) + 4;

  function drawRows() {
    const grid = $("grid"), down = places(state.rows), across = places(state.columns);
    const first = Math.max(0, Math.floor(grid.scrollTop / rowHeight()) - OVERSCAN);
    const last = Math.min(down.length, Math.ceil((grid.scrollTop + grid.clientHeight) / rowHeight()) + OVERSCAN);
    for (const [at, row] of seen) if (at < first || at >= last) { row.remove(); seen.delete(at); }
    for (let at = first; at < last; at++) {
      if (seen.has(at)) continue;
      const row = element("div", null, { class: "row", role: "row" });
      row.style.cssText = `top:${at * rowHeight()}px;height:${rowHeight()}px`;
      row.append(element("div", state.rows === NONE ? "" : textOf(state.rows, down[at]), { class: "name", role: "rowheader" }));
      for (const place of across) {
        const cell = element("div", null, { class: "cell", role: "cell" });
        cell.style.width = `${cellWidth()}px`;
        const own = cells.get(`${down[at]},${place}`) ?? [];
        cell.append(...own.slice(0, state.per).map((number) => thumbnail(number, side())));
        if (own.length > state.per) cell.append(element("span", `+${own.length - state.per}`, { class: "more" }));
        row.append(cell);
      }
      seen.set(at, row);
      $("body").append(row);
    }
  }

  function drawTabs() {
    const list = $("tab-list");
    list.hidden = state.tabs === NONE;
    if (state.tabs === NONE) return;
    const shownPlaces = places(state.tabs);
    if (!shownPlaces.includes(state.tab)) state.tab = shownPlaces[0] ?? 0;
    list.replaceChildren(...shownPlaces.map((place) => {
      const tab = element("button", textOf(state.tabs, place), { type: "button", role: "tab", "data-tab": place });
      tab.setAttribute("aria-selected", place === state.tab);
      return tab;
    }));
  }

  function drawFilters() {
    $("filter-list").replaceChildren(...data.axes.map((one) => {
      const set = element("fieldset");
      set.append(element("legend", one.name));
      for (let place = 0; place < Math.min(one.values.length, 300); place++) {
        const line = element("label");
        const box = element("input", null, { type: "checkbox", "data-axis": one.name, "data-place": place });
        box.checked = !state.filter[one.name]?.has(place);
        line.append(box, element("span", textOf(one.name, place)));
        set.append(line);
      }
      return set;
    }));
    const off = Object.values(state.filter).reduce((sum, places) => sum + places.size, 0);
    $("filters").firstElementChild.textContent = off ? `Filters (${off} off)` : "Filters";
  }

  // Ranking, charts, facts

  function drawRanking() {
    const names = Object.keys(data.scores);
    options($("score"), names.map((name) => [name, name]), state.score);
    $("order").value = state.order;
    if (state.score === NONE) {
      $("ranking").replaceChildren(element("p", "No scores yet: batchgen score OUTPUT --metric NAME makes some, and the report shows them."));
      return;
    }
    const scores = data.scores[state.score];
    const sign = state.order === "high" ? -1 : 1;
    order = [...scores.keys()].filter((number) => scores[number] !== null && pass(number)).sort((a, b) => sign * (scores[a] - scores[b]));
    $("ranking").replaceChildren(...order.slice(0, RANKED).map((number) => {
      const figure = element("figure");
      figure.append(thumbnail(number, 128), element("figcaption", `${shown(scores[number])} · ${data.ids[number]}`));
      return figure;
    }));
  }

  function drawCharts() {
    const names = Object.keys(data.scores);
    options($("chart-score"), names.map((name) => [name, name]), state.score);
    const rows = data.effects.filter((one) => one.score === state.score)
      .map((one) => [one.axis, one.value, one.rows, one.mean, one.low, one.high, one.above, one.paired ? "paired" : ""]);
    table($("effects"), ["axis", "value", "rows", "mean", "95 % from", "to", "above the mean of all", "interval"], rows);
    $("no-sets").hidden = data.sets.length > 0;
    if (data.sets.length) table($("sets"), ["output", "metric", "group", "images", "distance", "deviation", "from", "by"], data.sets.map((one) => [one.output, one.metric, one.group, one.rows, one.value, one.deviation, one.reference, one.features]));
    if (!names.length) return void $("charts").replaceChildren(element("p", "No scores yet: batchgen score OUTPUT --metric NAME makes some."));
    script("vendor/vega.min.js").then(() => script("vendor/vega-lite.min.js")).then(() => script("vendor/vega-embed.min.js"))
      .then(() => (drawnCharts ? null : script("data/charts.js"))).then(embed);
  }

  function embed() {
    const dark = matchMedia("(prefers-color-scheme: dark)").matches;
    const own = drawnCharts.filter((one) => one.title.startsWith(`${state.score} by `));
    $("charts").replaceChildren(...own.map((one) => {
      const figure = element("figure"), place = element("div");
      figure.append(element("figcaption", one.title), place);
      vegaEmbed(place, one.spec, { actions: false, ast: true, renderer: "svg", theme: dark ? "dark" : undefined, config: { background: "transparent" } });
      return figure;
    }));
  }

  function drawFacts() {
    const facts = [...new Set(data.runs.flatMap((run) => Object.keys(run)))];
    table($("runs"), ["", ...data.runs.map((run) => run.output)], facts.filter((name) => name !== "output").map((name) => [name, ...data.runs.map((run) => run[name])]));
    $("failed").textContent = data.failed ? `${data.failed} rows failed` : "No row failed.";
    table($("failures"), ["output", "id", "class", "error"], data.failures.map((one) => [one.output, one.id, one.class, one.error]));
  }

  // Viewer and comparison

  const scripts = new Map();
  function script(source) {
    if (!scripts.has(source)) {
      scripts.set(source, new Promise((resolve, reject) => {
        const tag = element("script", null, { src: source });
        tag.onload = resolve;
        tag.onerror = () => reject(new Error(`${source} is missing`));
        document.head.append(tag);
      }));
    }
    return scripts.get(source);
  }

  function details(number) {
    const chunk = Math.floor(number / data.chunk);
    return script(`data/rows-${String(chunk).padStart(3, "0")}.js`).then(() => chunks.get(chunk)[number % data.chunk]);
  }

  function open(number) {
    current = number;
    writeAddress();
    $("full").src = data.links[number] ?? "";
    $("full").alt = data.links[number] === null ? "The image cannot be read" : `Image ${data.ids[number]}`;
    const at = order.indexOf(number);
    $("place").textContent = at < 0 ? data.ids[number] : `${at + 1} of ${order.length}`;
    $("choose").textContent = chosen.has(number) ? "Remove from comparison" : "Add to comparison";
    $("parameters").replaceChildren();
    $("given").replaceChildren();
    $("again").textContent = "";
    details(number).then(({ cells, row, controls }) => {
      if (current !== number) return;
      $("given").replaceChildren(...controls.map(([text, source]) => {
        const figure = element("figure");
        figure.append(element("img", null, { src: source, alt: `What the ControlNet was given: ${text}` }), element("figcaption", text));
        return figure;
      }));
      const scores = Object.entries(data.scores).map(([name, values]) => [name, values[number]]).filter(([, value]) => value !== null);
      table($("parameters"), ["", ""], [...scores, ...Object.entries(cells)]);
      const quoted = row.replaceAll("'", "'\\''");
      $("again").textContent = `echo '${quoted}' > row.jsonl\nbatchgen run row.jsonl --output again`;
    });
    if (!$("viewer").open) $("viewer").showModal();
  }

  function step(by) {
    const at = order.indexOf(current);
    if (at >= 0 && order[at + by] !== undefined) open(order[at + by]);
  }

  function choose(number) {
    if (!chosen.delete(number)) chosen.add(number);
    for (const thumb of document.querySelectorAll(`[data-number="${number}"]`)) thumb.classList.toggle("chosen", chosen.has(number));
    $("compare").disabled = chosen.size < 2;
    $("compare").textContent = chosen.size ? `Compare (${chosen.size})` : "Compare";
  }

  function compare() {
    const differing = data.axes.filter((one) => new Set([...chosen].map((number) => data.at[one.name][number])).size > 1);
    $("side-by-side").replaceChildren(...[...chosen].map((number) => {
      const figure = element("figure");
      const caption = differing.map((one) => `${one.name}: ${named(one.name, number)}`).join("\n") || data.ids[number];
      figure.append(element("img", null, { src: data.links[number] ?? "", alt: `Image ${data.ids[number]}` }), element("figcaption", caption));
      return figure;
    }));
    blink(false);
    $("comparison").showModal();
  }

  function blink(on) {
    clearInterval(blinking);
    blinking = 0;
    $("blink").setAttribute("aria-pressed", on);
    const place = $("side-by-side");
    place.classList.toggle("blink", on);
    if (!on) return;
    let at = 0;
    const turn = () => [...place.children].forEach((figure, number) => figure.classList.toggle("now", number === at % place.children.length));
    turn();
    blinking = setInterval(() => { at++; turn(); }, 700);
  }

  // Drawing and events

  function draw() {
    for (const view of ["grid", "ranking", "charts", "facts"]) {
      $(`view-${view}`).hidden = view !== state.view;
      document.querySelector(`[data-view="${view}"]`).setAttribute("aria-pressed", view === state.view);
    }
    ({ grid: drawGrid, ranking: drawRanking, charts: drawCharts, facts: drawFacts })[state.view]();
  }

  function listen() {
    for (const key of ["rows", "columns", "tabs"]) {
      $(key).addEventListener("change", () => {
        const taken = ["rows", "columns", "tabs"].find((other) => other !== key && state[other] === $(key).value);
        if (taken && $(key).value !== NONE) state[taken] = state[key]; // axes change places
        state[key] = $(key).value;
        changed();
      });
    }
    $("per").addEventListener("change", () => { state.per = Number($("per").value); changed(); });
    for (const id of ["score", "chart-score"]) $(id).addEventListener("change", () => { state.score = $(id).value; changed(); });
    $("order").addEventListener("change", () => { state.order = $("order").value; changed(); });
    for (const form of document.forms) form.addEventListener("submit", (event) => event.preventDefault());
    $("grid").addEventListener("scroll", () => requestAnimationFrame(drawRows), { passive: true });
    addEventListener("resize", () => { if (state.view === "grid") drawGrid(); });
    addEventListener("hashchange", () => { readAddress(); draw(); });
    $("tab-list").addEventListener("click", (event) => {
      const tab = event.target.dataset.tab;
      if (tab !== undefined) { state.tab = Number(tab); changed(); }
    });
    $("filter-list").addEventListener("change", ({ target }) => {
      const off = (state.filter[target.dataset.axis] ??= new Set());
      if (target.checked) off.delete(Number(target.dataset.place));
      else off.add(Number(target.dataset.place));
      drawFilters();
      changed();
    });
    document.querySelector("nav").addEventListener("click", ({ target }) => {
      if (target.dataset.view) { state.view = target.dataset.view; changed(); }
    });
    document.addEventListener("click", (event) => {
      const thumb = event.target.closest(".thumb");
      if (!thumb) return;
      const number = Number(thumb.dataset.number);
      if (event.ctrlKey || event.metaKey || event.shiftKey) choose(number);
      else open(number);
    });
    document.addEventListener("keydown", (event) => {
      const thumb = document.activeElement?.closest?.(".thumb");
      if ($("viewer").open) {
        if (event.key === "ArrowLeft") step(-1);
        else if (event.key === "ArrowRight") step(1);
        else if (event.key === "c") choose(current), open(current);
      } else if (thumb && event.key === "c") choose(Number(thumb.dataset.number));
      else if (thumb && event.key.startsWith("Arrow")) move(thumb, event);
    });
    $("previous").addEventListener("click", () => step(-1));
    $("next").addEventListener("click", () => step(1));
    $("choose").addEventListener("click", () => { choose(current); open(current); });
    $("close").addEventListener("click", () => $("viewer").close());
    $("viewer").addEventListener("close", () => {
      const thumb = document.querySelector(`[data-number="${current}"]`);
      current = -1;
      writeAddress();
      thumb?.focus();
    });
    $("copy").addEventListener("click", () => {
      const selection = getSelection();
      selection.selectAllChildren($("again"));
      if (navigator.clipboard) navigator.clipboard.writeText($("again").textContent).catch(() => document.execCommand("copy"));
      else document.execCommand("copy");
    });
    $("compare").addEventListener("click", compare);
    $("blink").addEventListener("click", () => blink($("blink").getAttribute("aria-pressed") !== "true"));
    $("clear").addEventListener("click", () => { for (const number of [...chosen]) choose(number); $("comparison").close(); });
    $("close-comparison").addEventListener("click", () => $("comparison").close());
    $("comparison").addEventListener("close", () => blink(false));
  }

  function move(thumb, event) {
    event.preventDefault();
    const all = [...document.querySelectorAll(`#view-${state.view} .thumb`)];
    const here = thumb.getBoundingClientRect();
    const sideways = event.key === "ArrowLeft" || event.key === "ArrowRight";
    const sign = event.key === "ArrowLeft" || event.key === "ArrowUp" ? -1 : 1;
    const ahead = all.filter((one) => {
      const there = one.getBoundingClientRect();
      return sideways ? Math.abs(there.top - here.top) < 4 && sign * (there.left - here.left) > 4 : sign * (there.top - here.top) > 4;
    });
    const far = (one) => {
      const there = one.getBoundingClientRect();
      return Math.abs(there.top - here.top) * (sideways ? 1 : 4) + Math.abs(there.left - here.left);
    };
    ahead.sort((a, b) => far(a) - far(b))[0]?.focus();
  }

  return {
    index(given) {
      data = given;
      const names = data.axes.map((one) => one.name);
      const free = data.axes.filter((one) => one.name !== "seed").sort((a, b) => b.values.length - a.values.length);
      [state.rows, state.columns, state.tabs] = [free[0]?.name ?? names[0] ?? NONE, free[1]?.name ?? NONE, NONE];
      readAddress();
      const title = `${data.outputs.join(", ")}`;
      document.title = `${title} · report`;
      $("title").textContent = title;
      $("summary").textContent = `${data.ids.length.toLocaleString("en")} images, ${names.length} axes: ${names.join(", ")}. Made ${data.made}.`;
      listen();
      drawFilters();
      draw();
      if (current >= 0) open(current);
    },
    rows({ chunk, rows }) { chunks.set(chunk, rows); },
    charts(specs) { drawnCharts = specs; },
  };
})();
