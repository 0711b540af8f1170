"use strict";
(() => {
  const $ = (id) => document.getElementById(id);
  const meta = JSON.parse($("data-meta").textContent);
  const PHOTOGRAPH = 0, INVERSION = 1, FIRST_EDIT = 2, KEPT_LEAVES = 600;

  // ---- data: blocks of this file, or scripts beside it, which a browser loads from a disk too
  const loading = new Map(), leaves = [];
  let deliver = {};
  window.styleclip = (name, value) => deliver[name]?.(value);
  function load(name) {
    if (!loading.has(name)) loading.set(name, meta.base ? fetchScript(name) : Promise.resolve(readBlock(name)));
    return loading.get(name);
  }
  function readBlock(name) {
    const block = $("data-" + name);
    return block ? JSON.parse(block.textContent) : null;
  }
  function fetchScript(name) {
    return new Promise((resolve) => {
      const script = document.createElement("script");
      const end = (value) => { delete deliver[name]; script.remove(); resolve(value); };
      deliver[name] = end;
      script.onload = () => deliver[name] && end(null);
      script.onerror = () => {
        trouble(`A file of this page is missing: ${meta.base}${name}.js`);
        loading.delete(name);
        end(null);
      };
      script.src = `${meta.base}${name}.js`;
      document.head.append(script);
    });
  }
  async function thumbnail(column, image) {
    const name = `thumbs-${column}-${Math.floor(image / meta.leaf)}`;
    if (meta.base && !loading.has(name)) {
      leaves.push(name);
      if (leaves.length > KEPT_LEAVES) loading.delete(leaves.shift());
    }
    const found = (await load(name))?.[image % meta.leaf];
    return found ? `data:image/webp;base64,${found}` : "";
  }
  function bytes(text) {
    const raw = atob(text), array = new Uint8Array(raw.length);
    for (let i = 0; i < raw.length; i++) array[i] = raw.charCodeAt(i);
    return array;
  }
  const rows = new Map();
  async function editRows(number) {
    if (!rows.has(number)) {
      const found = await load(`edit-${number}`);
      if (!found) return { status: new Uint8Array(meta.images).fill(3), scores: {}, others: {} };
      const scores = {};
      for (const [name, text] of Object.entries(found.scores)) scores[name] = new Float32Array(bytes(text).buffer);
      let packed = found.packed && { objects: found.packed.objects, object: new Int32Array(bytes(found.packed.object).buffer) };
      for (const end of packed ? ["start", "end"] : []) packed[end] = new Float64Array(bytes(found.packed[end]).buffer);
      rows.set(number, { status: bytes(found.status), scores, others: found.others || {}, packed });
    }
    return rows.get(number);
  }

  // ---- elements; texts are set as texts, never as markup
  function h(tag, attributes = {}, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
      else if (value !== undefined && value !== null) element.setAttribute(name, value);
    }
    element.append(...children);
    return element;
  }
  function trouble(text) { const place = $("trouble"); place.textContent = text; place.hidden = false; }
  const number = (value) => Number.isFinite(value) ? value.toFixed(3) : "–";
  const grouped = (value) => value.toLocaleString("en");
  const title = (edit) => `${edit.name}${edit.alone ? "" : `, ${edit.summary}`}`;
  const ratio = `aspect-ratio: ${meta.shape[0]} / ${meta.shape[1]}`;

  // ---- the slider: pointer and touch move it, and an invisible range for the keyboard and screen readers
  function slide(before, after, label) {
    const range = h("input", { type: "range", min: 0, max: 100, value: 50, "aria-label": `Before and after: ${label}` });
    const box = h("div", { class: "slide", style: ratio },
      after ? h("img", { class: "over", src: after, alt: `after: ${label}`, draggable: "false" }) : h("span", { class: "absent" }, "no image"),
      ...(before ? [h("img", { class: "under", src: before, alt: `before: ${label}`, draggable: "false" })] : []),
      h("span", { class: "knob", "aria-hidden": "true" }), range);
    const show = (at) => {
      range.value = at;
      range.setAttribute("aria-valuetext", `${Math.round(at)} % before`);
      box.style.setProperty("--at", `${at}%`);
    };
    const follow = (event) => {
      const place = box.getBoundingClientRect();
      show(Math.min(100, Math.max(0, (100 * (event.clientX - place.left)) / place.width)));
    };
    box.addEventListener("pointerdown", (event) => {
      if (event.button) return;
      box.setPointerCapture(event.pointerId);
      follow(event);
      range.focus({ preventScroll: true });
    });
    box.addEventListener("pointermove", (event) => { if (box.hasPointerCapture(event.pointerId)) follow(event); });
    range.addEventListener("input", () => show(Number(range.value)));
    show(50);
    return box;
  }
  async function fillThumb(frame, column, image, label) {
    const source = await thumbnail(column, image);
    if (source) frame.replaceChildren(h("img", { src: source, alt: label }));
  }
  function thumb(column, image, label, caption, pressed, action) {
    const frame = h("span", { class: "frame", style: ratio });
    fillThumb(frame, column, image, label);
    return h("button", { type: "button", class: "thumb", title: label, "aria-pressed": pressed, onclick: action }, frame, h("span", {}, caption));
  }

  // ---- state, mirrored in the address so that a view can be shared
  // it opens on what worked best: the edit, and its images by the first score
  const ranking = meta.scores.length ? { sort: meta.scores[0].name, order: "best" } : { sort: "key", order: "first" };
  const state = { edit: meta.opens, ...ranking, before: meta.inversions ? "inversion" : "photograph", q: "", page: 1 };
  let keys = [], names = {}, edited = {}, lower = [], order = [], turn = 0;
  function readAddress() {
    if (!location.hash.includes("=")) return;
    const given = new URLSearchParams(location.hash.slice(1));
    const edit = Number(given.get("edit"));
    if (Number.isInteger(edit) && meta.edits[edit]) state.edit = edit;
    if (["key", ...meta.scores.map((score) => score.name)].includes(given.get("sort"))) state.sort = given.get("sort");
    if (["first", "last", "best", "worst"].includes(given.get("order"))) state.order = given.get("order");
    if (["photograph", ...(meta.inversions ? ["inversion"] : [])].includes(given.get("before"))) state.before = given.get("before");
    state.q = given.get("q") || "";
    state.page = Math.max(1, Math.floor(Number(given.get("page"))) || 1);
  }
  function writeAddress() {
    const parts = new URLSearchParams({ edit: state.edit, sort: state.sort, order: state.order, before: state.before });
    if (state.q) parts.set("q", state.q);
    if (state.page > 1) parts.set("page", state.page);
    history.replaceState(null, "", `#${parts}`);
  }
  const beforeColumn = () => (state.before === "inversion" ? INVERSION : PHOTOGRAPH);
  const scoreOf = (name) => meta.scores.find((score) => score.name === name);

  function ranked(values, status, best) {
    // images that are done and have the score, the better ones first if best
    const found = [];
    for (let i = 0; i < meta.images; i++) if (status[i] === 0 && Number.isFinite(values[i])) found.push(i);
    const way = (best.high ? -1 : 1) * (best.first ? 1 : -1);
    return found.sort((a, b) => way * (values[a] - values[b]) || a - b);
  }
  async function arrange() {
    const { status, scores } = await editRows(state.edit);
    const wanted = state.q.trim().toLowerCase();
    let found;
    if (state.sort !== "key" && scores[state.sort]) {
      found = ranked(scores[state.sort], status, { high: scoreOf(state.sort).high, first: state.order === "best" });
    } else {
      found = [];
      for (let i = 0; i < meta.images; i++) if (status[i] === 0) found.push(i);
      if (state.order === "last") found.reverse();
    }
    return wanted ? found.filter((image) => lower[image].includes(wanted)) : found;
  }

  // ---- the gallery
  async function showCards() {
    const mine = ++turn;
    const [arranged, { scores }] = [await arrange(), await editRows(state.edit)];
    if (mine !== turn) return;
    order = arranged;
    const pages = Math.max(1, Math.ceil(order.length / meta.page));
    state.page = Math.min(state.page, pages);
    const shown = order.slice((state.page - 1) * meta.page, state.page * meta.page);
    const pairs = await Promise.all(shown.map((image) => Promise.all([thumbnail(beforeColumn(), image), thumbnail(FIRST_EDIT + state.edit, image)])));
    if (mine !== turn) return;
    $("cards").replaceChildren(...(shown.length ? shown.map((image, place) => card(image, pairs[place], scores)) : [
      h("p", { class: "empty" }, state.q ? "No key contains that." : "No image of this edit is done.")]));
    for (const pager of document.querySelectorAll(".pager")) showPager(pager, pages);
    writeAddress();
  }
  function card(image, [before, after], scores) {
    const known = meta.scores.filter((score) => scores[score.name]), main = scoreOf(state.sort) || known[0];
    const all = known.map((score) => `${score.title} ${number(scores[score.name][image])}`).join("\n");
    return h("figure", { class: "card", "data-image": image }, slide(before, after, keys[image]),
      h("figcaption", {}, h("button", { type: "button", class: "key", title: `Enlarge ${keys[image]}`, onclick: () => view(image, state.edit) }, h("bdi", {}, keys[image])),
        ...(main ? [h("span", { class: "values", title: all }, main.title, h("b", {}, number(scores[main.name]?.[image])))] : [])));
  }
  function showPager(pager, pages) {
    const first = (state.page - 1) * meta.page + 1, last = Math.min(order.length, state.page * meta.page);
    const go = (page) => { state.page = Math.min(pages, Math.max(1, page)); showCards(); if (pager.dataset.pager === "bottom") $("compare").scrollIntoView(); };
    const field = h("input", { type: "number", min: 1, max: pages, value: state.page, "aria-label": "Page", onchange: (event) => go(Math.floor(Number(event.target.value)) || 1) });
    pager.replaceChildren(
      h("span", { class: "count" }, order.length ? `${grouped(first)}–${grouped(last)} of ${grouped(order.length)}` : ""),
      h("button", { type: "button", "aria-label": "Previous page", onclick: () => go(state.page - 1) }, "‹"),
      h("span", { class: "word" }, "Page"), field, h("span", {}, `of ${grouped(pages)}`),
      h("button", { type: "button", "aria-label": "Next page", onclick: () => go(state.page + 1) }, "›"));
    const [back, on] = pager.querySelectorAll("button");
    back.disabled = state.page <= 1;
    on.disabled = state.page >= pages;
    pager.hidden = pager.dataset.pager === "bottom" && shown(pager) < 9;
  }
  const shown = () => $("cards").childElementCount;

  // ---- the best and the worst by each score
  async function showExtremes() {
    const place = $("extremes-rows");
    if (!place || !near.has("extremes")) return;
    const edit = state.edit, { status, scores } = await editRows(edit);
    if (edit !== state.edit) return;
    $("extremes-edit").textContent = title(meta.edits[edit]);
    const end = (score, list, name) => h("div", { class: "ends" }, h("h4", {}, name), h("div", { class: "thumbs" }, ...list.map((image) =>
      thumb(FIRST_EDIT + edit, image, `${keys[image]}: ${score.title} ${number(scores[score.name][image])}`, number(scores[score.name][image]), undefined, () => view(image, edit)))));
    place.replaceChildren(...meta.scores.filter((score) => scores[score.name]).map((score) => {
      const best = ranked(scores[score.name], status, { high: score.high, first: true }), count = Math.min(4, Math.floor(best.length / 2) || best.length);
      return h("div", { class: "score-row" }, h("div", {}, h("h3", {}, score.title), h("p", { class: "note" }, score.high ? "higher is better" : "lower is better")),
        end(score, best.slice(0, count), "Best"), end(score, best.slice(-count).reverse(), "Worst"));
    }));
  }

  // ---- one image, large
  let viewed = 0, viewedEdit = 0;
  const nameOf = (image) => {
    const name = names[image] || keys[image];
    return name[0] === "~" ? keys[image] + name : name;
  };
  const link = (folder, name) => `${folder}/${name.split("/").map(encodeURIComponent).join("/")}`;
  // whoever serves the pages cuts an image out of a tar or a table; a bucket or a disk has the whole alone
  const cuts = ["127.0.0.1", "localhost"].includes(location.hostname);
  function output(edit, image, { others, packed }) {
    const { folder, ending } = meta.edits[edit];
    if (packed && packed.object[image] >= 0) {
      const start = packed.start[image], end = packed.end[image];
      const object = link(folder, packed.objects[packed.object[image]]);
      const where = end ? `bytes ${start} to ${end}` : `row ${start}`;
      return { address: cuts ? `${object}?${end ? `bytes=${start}-${end}` : `row=${start}`}` : object, where: cuts ? "" : ` (${where} of this file)`, whole: cuts };
    }
    const name = edited[image] || nameOf(image).replace(/\.png$/, "");
    const usual = `${name[0] === "~" ? keys[image] + name : name}${ending}`;
    return { address: link(folder, others[image] || usual), where: "", whole: true };
  }
  function sharpen(picture, address) {
    // the thumbnail stays where the whole image cannot be had, say by a link to this file alone
    if (!picture || !address) return;
    const whole = new Image();
    whole.onload = () => { picture.src = address; };
    whole.src = address;
  }
  async function view(image, edit) {
    [viewed, viewedEdit] = [image, edit];
    const rowsOf = await editRows(edit), { scores } = rowsOf, column = beforeColumn();
    const [before, after] = await Promise.all([thumbnail(column, image), thumbnail(FIRST_EDIT + edit, image)]);
    if (viewed !== image || viewedEdit !== edit) return;
    const box = slide(before, after, keys[image]), about = meta.edits[edit];
    $("viewer-key").textContent = keys[image];
    $("viewer-image").replaceChildren(box);
    $("viewer-edit").replaceChildren(h("strong", {}, about.name), h("br"), `${about.neutral} → ${about.target}`, h("br"), h("small", {}, about.summary));
    $("viewer-scores").replaceChildren(...meta.scores.filter((score) => scores[score.name]).map((score) =>
      h("div", {}, h("dt", {}, score.title), h("dd", {}, number(scores[score.name][image])))));
    const made = about.folder && after && output(edit, image, rowsOf);
    const original = column === INVERSION && meta.reconstructions && before && link(meta.reconstructions, nameOf(image));
    $("viewer-links").replaceChildren(...(made ? [h("a", { href: made.address, target: "_blank", rel: "noopener" }, `Edited image${made.where}`)] : []), " ",
      ...(original ? [h("a", { href: original, target: "_blank", rel: "noopener" }, "Inversion")] : []));
    sharpen(box.querySelector(".over"), made && made.whole && made.address);
    sharpen(box.querySelector(".under"), original);
    $("viewer-strip").replaceChildren(...meta.edits.map((other, place) => thumb(FIRST_EDIT + place, image, title(other), other.alone ? other.name : other.summary, String(place === edit), () => view(image, place))));
    $("viewer-back").disabled = order.indexOf(image) <= 0;
    $("viewer-on").disabled = order.indexOf(image) < 0 || order.indexOf(image) === order.length - 1;
    if (!$("viewer").open) $("viewer").showModal();
  }
  const beside = (step) => { const next = order[order.indexOf(viewed) + step]; if (next !== undefined) view(next, viewedEdit); };

  // ---- alpha x beta
  let sweepImages = [], sweepPlace = 0;
  async function showSweep() {
    if (!near.has("sweeps")) return;
    const sweep = meta.sweeps[Number($("sweep").value)];
    const members = sweep.cells.flat().filter((edit) => edit >= 0);
    const all = await Promise.all(members.map(editRows));
    sweepImages = [...Array(meta.images).keys()].filter((image) => all.every((each) => each.status[image] === 0));
    sweepPlace = Math.min(sweepPlace, Math.max(0, sweepImages.length - 1));
    const image = sweepImages[sweepPlace];
    $("sweep-key").textContent = image === undefined ? "no image has them all" : keys[image];
    $("sweep-back").disabled = sweepPlace <= 0;
    $("sweep-on").disabled = sweepPlace >= sweepImages.length - 1;
    if (image === undefined) { $("sweep-table").replaceChildren(); return; }
    const score = meta.scores[0];
    const cell = (edit) => {
      if (edit < 0) return h("td");
      const value = score ? all[members.indexOf(edit)].scores[score.name]?.[image] : undefined;
      return h("td", {}, thumb(FIRST_EDIT + edit, image, title(meta.edits[edit]), value === undefined ? "" : number(value), undefined, () => view(image, edit)));
    };
    const first = (row) => row ? h("td") : h("td", { rowspan: sweep.cells.length }, thumb(beforeColumn(), image, "before", "before", undefined, () => view(image, members[0])));
    $("sweep-table").replaceChildren(h("table", {},
      h("thead", {}, h("tr", {}, h("th", {}), h("th", {}, ""), ...sweep.strengths.map((value) => h("th", { scope: "col" }, `${sweep.axis} ${value}`)))),
      h("tbody", {}, ...sweep.cells.map((cells, row) => h("tr", {},
        h("th", { scope: "row" }, sweep.by ? `${sweep.by} ${sweep.thresholds[row]}` : ""), ...(row ? [] : [first(row)]), ...cells.map(cell))))));
  }

  // ---- wiring; what is far below waits until somebody scrolls there, as its thumbnails must be fetched
  const near = new Set();
  function whenNear(id, show) {
    if (!$(id)) return;
    new IntersectionObserver((entries, observer) => {
      if (!entries.some((entry) => entry.isIntersecting)) return;
      observer.disconnect();
      near.add(id);
      show();
    }, { rootMargin: "400px" }).observe($(id));
  }
  function options(select, entries, chosen) {
    select.replaceChildren(...entries.map(([value, text]) => h("option", { value }, text)));
    select.value = chosen;
  }
  function showTools() {
    options($("edit-choice"), meta.edits.map((edit, place) => [place, title(edit)]), state.edit);
    options($("sort"), [["key", "Key"], ...meta.scores.map((score) => [score.name, score.title])], state.sort);
    showOrders();
    options($("before"), [...(meta.inversions ? [["inversion", "Inversion"]] : []), ["photograph", "Photograph"]], state.before);
    $("search").value = state.q;
  }
  function showOrders() {
    const entries = state.sort === "key" ? [["first", "first to last"], ["last", "last to first"]] : [["worst", "worst first"], ["best", "best first"]];
    if (!entries.some(([value]) => value === state.order)) state.order = entries[0][0];
    options($("order"), entries, state.order);
  }
  function change(values) { Object.assign(state, { page: 1 }, values); showOrders(); showCards(); }
  function chooseEdit(edit) { $("edit-choice").value = edit; change({ edit }); showExtremes(); }

  $("edit-choice").addEventListener("change", (event) => chooseEdit(Number(event.target.value)));
  $("sort").addEventListener("change", (event) => change({ sort: event.target.value }));
  $("order").addEventListener("change", (event) => change({ order: event.target.value }));
  $("before").addEventListener("change", (event) => { change({ before: event.target.value, page: state.page }); if (meta.sweeps.length) showSweep(); });
  let typing = 0;
  $("search").addEventListener("input", (event) => { clearTimeout(typing); typing = setTimeout(() => change({ q: event.target.value }), 150); });
  $("tools").addEventListener("submit", (event) => event.preventDefault());
  for (const button of document.querySelectorAll("[data-edit]")) button.addEventListener("click", () => { chooseEdit(Number(button.dataset.edit)); $("compare").scrollIntoView(); });
  $("theme").addEventListener("click", () => {
    const root = document.documentElement, now = root.style.colorScheme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
    root.style.colorScheme = now === "dark" ? "light" : "dark";
  });
  $("viewer-close").addEventListener("click", () => $("viewer").close());
  $("viewer").addEventListener("click", (event) => { if (event.target === $("viewer")) $("viewer").close(); });
  $("viewer-back").addEventListener("click", () => beside(-1));
  $("viewer-on").addEventListener("click", () => beside(1));
  window.addEventListener("hashchange", () => { readAddress(); showTools(); showCards(); showExtremes(); });

  async function start() {
    const found = await load("keys");
    if (!found) return;
    ({ keys, names, edited = {} } = found);
    lower = keys.map((key) => key.toLowerCase());
    readAddress();
    showTools();
    await showCards();
    whenNear("extremes", showExtremes);
    if (meta.sweeps.length) {
      options($("sweep"), meta.sweeps.map((sweep, place) => [place, `${sweep.name}: ${sweep.target}`]), 0);
      $("sweep").addEventListener("change", showSweep);
      $("sweep-back").addEventListener("click", () => { sweepPlace--; showSweep(); });
      $("sweep-on").addEventListener("click", () => { sweepPlace++; showSweep(); });
      whenNear("sweeps", showSweep);
    }
    document.documentElement.dataset.ready = "yes";
  }
  start();
})();
