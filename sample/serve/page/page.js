// The page: what is asked for, what is being drawn, what was drawn.

import { blobOf, draw, health, keepKey, Refused, settings } from "./api.js";
import { Brush } from "./brush.js";
import * as history from "./history.js";
import { recordOf } from "./png.js";

const $ = (id) => document.getElementById(id);
const IDEAS = ["a red apple", "a rocket", "a smiling face", "a fish", "a green tree", "a yellow star"];
const NAMES = { prior: "thinking of it", decoder: "64", upsampler_256: "256", upsampler_1024: "1024" };
const ORDER = Object.keys(NAMES);

let server = { sizes: [64, 256, 1024], styles: [], steps: 30, guidance: 3, max_pictures: 10 };
let sheet = []; // tiles on the stage
let past = []; // pictures of the history, the newest first
let chosen = []; // pictures, two at most
let frames = null; // pictures of a way, where the stage shows one
let running = null; // an AbortController
let nextId = Date.now();

// --- what is asked for -------------------------------------------------------------------------

function picked(name) { return Number(document.querySelector(`input[name="${name}"]:checked`).value); }

function asked() {
  const style = $("style").value;
  const prompt = $("prompt").value.trim();
  const named = style && !prompt.includes(style);
  return {
    prompt: prompt + (named ? ", " + style : ""),
    n: picked("count"),
    size: `${picked("size")}x${picked("size")}`,
    guidance: Number($("guidance").value),
    steps: Number($("steps").value),
    seed: $("seed").value.trim() === "" ? null : Number($("seed").value),
    negative_prompt: $("negative").value.trim(),
  };
}

// Fields that every way of drawing shares, without the caption.
function manner() {
  const { size, guidance, steps, seed, negative_prompt } = asked();
  return { size, guidance, steps, seed, negative_prompt };
}

// Others like a picture have no caption to be led by: unless the slider was moved, the model's own
// guidance of a picture alone.
function mannerOfLikes() {
  const fields = manner();
  return fields.guidance === server.guidance ? { ...fields, guidance: null } : fields;
}

function segments(id, name, values, initial) {
  const group = document.createElement("div");
  for (const value of values) {
    const label = document.createElement("label");
    const input = Object.assign(document.createElement("input"), { type: "radio", name, value });
    input.checked = value === initial;
    const shown = Object.assign(document.createElement("span"), { textContent: value });
    label.append(input, shown);
    group.append(label);
  }
  $(id).append(group);
}

function showNumbers() {
  $("guidance-is").textContent = $("guidance").value;
  $("steps-is").textContent = $("steps").value;
  $("strength-is").textContent = Math.round($("strength").value * 100) + " %";
  $("brush-is").textContent = $("brush").value + " %";
}

// Words and settings of a picture, back into the form.
function restore(record) {
  const stage = (value) => (value && typeof value === "object" ? value.decoder : value);
  let words = String(record.prompt ?? "");
  $("style").value = "";
  for (const style of server.styles) {
    if (!words.endsWith(", " + style)) continue;
    words = words.slice(0, -style.length - 2);
    $("style").value = style;
  }
  $("prompt").value = words;
  $("negative").value = record.negative_prompt ?? "";
  if (Number.isSafeInteger(record.seed)) $("seed").value = record.seed;
  if (Number.isFinite(stage(record.guidance))) $("guidance").value = stage(record.guidance);
  if (Number.isFinite(stage(record.steps))) $("steps").value = stage(record.steps);
  for (const input of document.querySelectorAll('input[name="size"]')) {
    if (Number(input.value) === record.size) input.checked = true;
  }
  $("more").open = true;
  showNumbers();
  tell("Its words and settings are back.");
}

// --- tiles -------------------------------------------------------------------------------------

function newTile(where) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "tile drawing";
  const picture = document.createElement("img");
  picture.alt = "";
  picture.hidden = true;
  const bar = Object.assign(document.createElement("span"), { className: "bar" });
  bar.append(document.createElement("i"));
  const at = Object.assign(document.createElement("span"), { className: "at", textContent: "waiting" });
  const pick = Object.assign(document.createElement("span"), { className: "pick" });
  button.append(picture, bar, at, pick);
  button.setAttribute("aria-label", "A picture that is being drawn");
  const tile = { button, picture, bar, at, pick, made: null };
  button.onclick = () => tile.made && toggle(tile.made);
  where.append(button);
  return tile;
}

function show(tile, blob) {
  const before = tile.picture.src;
  tile.picture.src = URL.createObjectURL(blob);
  tile.picture.hidden = false;
  tile.button.classList.add("seen");
  tile.picture.onload = () => before && URL.revokeObjectURL(before);
}

function progress(tile, event) {
  const stages = ORDER.slice(0, 1 + server.sizes.filter((size) => [64, 256, 1024].includes(size) && size <= ceiling()).length);
  const number = stages.indexOf(event.stage);
  const share = (number + event.step / event.num_steps) / stages.length;
  tile.bar.firstChild.style.width = `${100 * share}%`;
  const side = event.stage === "prior" ? "" : NAMES[event.stage] + " px · ";
  tile.at.textContent = side + (event.stage === "prior" ? NAMES.prior : `step ${event.step} of ${event.num_steps}`);
  showStages(stages, number);
}

// The side that the stages reach: 512 is made of 1024.
function ceiling() { return picked("size") === 512 ? 1024 : picked("size"); }

function showStages(stages, now) {
  $("stages").hidden = false;
  const items = stages.slice(1).map((stage, at) => {
    const item = Object.assign(document.createElement("li"), { textContent: NAMES[stage] });
    item.className = at + 1 === now ? "now" : at + 1 < now ? "past" : "";
    return item;
  });
  $("stages").replaceChildren(...items);
}

function finish(tile, made) {
  tile.made = made;
  made.tiles.push(tile);
  tile.button.classList.remove("drawing");
  tile.bar.remove();
  tile.at.remove();
  tile.picture.classList.remove("rough");
  tile.picture.alt = made.made.prompt || "picture";
  tile.button.setAttribute("aria-label", `${made.made.prompt || "Picture"}, seed ${made.made.seed}`);
  tile.button.setAttribute("aria-pressed", "false");
  show(tile, made.blob);
}

// --- choosing ----------------------------------------------------------------------------------

function toggle(picture) {
  chosen = chosen.includes(picture) ? chosen.filter((each) => each !== picture) : [...chosen, picture].slice(-2);
  showChosen();
}

function showChosen() {
  for (const picture of [...past, ...(frames || [])]) {
    const number = chosen.indexOf(picture) + 1;
    for (const tile of picture.tiles) {
      tile.button.setAttribute("aria-pressed", String(number > 0));
      tile.pick.textContent = number ? (chosen.length > 1 ? number : "✓") : "";
    }
  }
  $("toolbar").hidden = !chosen.length || Boolean(running);
  for (const button of $("toolbar").children) {
    const ofTwo = button.dataset.do === "between";
    button.hidden = ofTwo !== (chosen.length === 2) && button.dataset.do !== "save";
  }
}

// --- drawing -----------------------------------------------------------------------------------

function tell(words, bad = false) {
  $("told").textContent = words;
  $("told").classList.toggle("bad", bad);
}

function busy(controller) {
  running = controller;
  $("stop").hidden = !controller;
  $("draw").disabled = Boolean(controller);
  if (!controller) $("stages").hidden = true;
  showChosen();
}

// Draw by one request; a way of several frames is shown with a slider.
async function run(way, fields, { count = 1, asWay = null, words = "" } = {}) {
  if (running) return;
  const controller = new AbortController();
  const before = { tiles: sheet, frames };
  chosen = [];
  layOut(count, asWay);
  busy(controller);
  tell("In the queue");
  const started = performance.now();
  let done = 0;
  const take = (event) => {
    const kind = event.type.split(".")[1];
    const tile = sheet[event.image_index];
    if (kind === "progress") {
      for (const each of asWay ? sheet : [tile]) progress(each, event);
      tell(words || "Drawing");
    } else if (kind === "partial_image") {
      tile.picture.classList.toggle("rough", event.size === "64x64");
      show(tile, blobOf(event));
    } else if (kind === "completed") {
      done += 1;
      const made = { prompt: fields.prompt ?? "", seed: event.seed, way };
      finish(tile, { id: nextId++, blob: blobOf(event), made, tiles: [] });
    }
  };
  try {
    await draw(way, fields, take, controller.signal);
    const seconds = ((performance.now() - started) / 1000).toFixed(1);
    keep(sheet.map((tile) => tile.made), asWay);
    tell(count === 1 ? `Drawn in ${seconds} s` : `${count} pictures in ${seconds} s`);
  } catch (error) {
    failed(error, before, done);
  } finally {
    busy(null);
  }
}

function failed(error, before, done) {
  if (done && !frames) {
    for (const tile of sheet.filter((each) => !each.made)) tile.button.remove();
    sheet = sheet.filter((each) => each.made);
    keep(sheet.map((tile) => tile.made), null);
  } else {
    sheet = before.tiles;
    frames = before.frames;
    $("sheet").replaceChildren(...(sheet.length ? sheet.map((tile) => tile.button) : [empty]));
    $("way").hidden = !frames;
    arrange();
  }
  if (error.name === "AbortError") return tell("Stopped");
  if (!(error instanceof Refused)) console.error(error);
  tell(error.message, true);
  if (error.status === 401) askForKey();
}

const empty = $("empty");

function layOut(count, asWay) {
  frames = asWay ? [] : null;
  $("sheet").replaceChildren();
  sheet = Array.from({ length: count }, () => newTile($("sheet")));
  $("way").hidden = !asWay;
  if (asWay) {
    Object.assign($("way-at"), { max: count - 1, value: 0 });
    $("way-from").textContent = asWay.from;
    $("way-to").textContent = asWay.to;
  }
  arrange();
}

// As many columns as make the pictures largest; of a way, the frame at the slider alone.
function arrange() {
  const shown = frames ? 1 : Math.max(1, sheet.length);
  $("sheet").style.setProperty("--columns", Math.ceil(Math.sqrt(shown)));
  if (frames) sheet.forEach((tile, at) => { tile.button.hidden = at !== Number($("way-at").value); });
}

function keep(pictures, asWay) {
  if (asWay) {
    frames = pictures;
    arrange();
  }
  past = [...[...pictures].reverse(), ...past];
  showPast();
  history.remember(pictures);
  if (pictures.length === 1) chosen = [pictures[0]];
}

function showPast() {
  $("history").hidden = !past.length;
  $("past").replaceChildren();
  for (const picture of past.slice(0, 60)) {
    const item = document.createElement("li");
    picture.tiles = picture.tiles.filter((tile) => tile.button.parentElement === $("sheet"));
    finish(newTile(item), picture);
    $("past").append(item);
  }
  showChosen();
}

// --- with what is chosen -----------------------------------------------------------------------

const ACTIONS = {
  vary: ([picture]) => run("variations", { ...mannerOfLikes(), n: picked("count"), image: picture.blob }, {
    count: picked("count"), words: "Drawing others like it",
  }),
  paint: ([picture]) => openEasel(picture),
  lead: ([picture]) => openLeading(picture),
  between: ([first, second]) => run(
    "interpolations",
    { ...ways(), image: first.blob, image_to: second.blob },
    { count: ways().frames, asWay: { from: "first", to: "second" }, words: "Going from one to the other" },
  ),
  reuse: async ([picture]) => restore((await recordOf(picture.blob)) ?? picture.made),
  save: (pictures) => pictures.forEach(save),
};

// A way is drawn without guidance, so that its ends are the pictures themselves.
function ways() {
  const { size, steps, seed } = manner();
  return { size, steps, seed, frames: 5 };
}

function save(picture) {
  const words = (picture.made.prompt || "picture").toLowerCase().replace(/[^a-z0-9]+/g, "-").slice(0, 40);
  const link = document.createElement("a");
  link.href = URL.createObjectURL(picture.blob);
  link.download = `${words.replace(/^-|-$/g, "") || "picture"}-${picture.made.seed ?? "opened"}.png`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

let subject = null; // the picture of an open dialog

async function openEasel(picture) {
  subject = picture;
  $("board-picture").src = URL.createObjectURL(picture.blob);
  await $("board-picture").decode();
  $("painting-prompt").value = picture.made.prompt || $("prompt").value;
  $("painting").showModal();
  brush.begin($("board-picture").naturalWidth, $("board-picture").naturalHeight);
  $("board").style.aspectRatio = `${brush.canvas.width} / ${brush.canvas.height}`;
}

const brush = new Brush($("board-mask"), () => { $("paint").disabled = brush.isEmpty || !$("painting-prompt").value.trim(); });

async function paint() {
  const prompt = $("painting-prompt").value.trim();
  const mask = await brush.file();
  $("painting").close();
  run("edits", { ...manner(), n: 1, prompt, image: subject.blob, mask }, { words: "Painting a part anew" });
}

function openLeading(picture) {
  subject = picture;
  $("base").value = picture.made.prompt || "a photo";
  $("leading").showModal();
  $("target").focus();
}

function lead() {
  const target = $("target").value.trim(), base = $("base").value.trim() || "a photo";
  if (!target) return;
  const fields = { ...ways(), image: subject.blob, target, base, strength: Number($("strength").value) };
  run("text_diffs", fields, { count: fields.frames, asWay: { from: base, to: target }, words: "Leading it by words" });
}

function askForKey() { if (!$("asking").open) $("asking").showModal(); }

// --- pictures from outside ---------------------------------------------------------------------

async function open(file) {
  if (!file || !file.type.startsWith("image/")) return tell("That is no picture.", true);
  const record = await recordOf(file).catch(() => null);
  const picture = { id: nextId++, blob: file, made: { prompt: record?.prompt ?? "", seed: record?.seed }, tiles: [] };
  frames = null;
  $("way").hidden = true;
  $("sheet").replaceChildren();
  const tile = newTile($("sheet"));
  sheet = [tile];
  finish(tile, picture);
  arrange();
  keep([picture], null);
  showChosen();
  if (record) restore(record);
  else tell("Opened. It does not say how it was made.");
}

// --- the beginning -----------------------------------------------------------------------------

function listen() {
  $("composer").onsubmit = (event) => {
    event.preventDefault();
    const fields = asked();
    if (!fields.prompt) return $("prompt").focus();
    run("generations", fields, { count: fields.n });
  };
  $("prompt").onkeydown = (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      $("composer").requestSubmit();
    }
  };
  for (const id of ["guidance", "steps", "strength"]) $(id).oninput = showNumbers;
  $("brush").oninput = () => { brush.size = $("brush").value / 100; showNumbers(); };
  $("dice").onclick = () => { $("seed").value = ""; };
  $("stop").onclick = () => running?.abort();
  $("way-at").oninput = arrange;
  $("toolbar").onclick = (event) => {
    const name = event.target.closest("button")?.dataset.do;
    if (name && chosen.length) ACTIONS[name](chosen);
  };
  $("open").onclick = () => $("file").click();
  $("file").onchange = () => { open($("file").files[0]); $("file").value = ""; };
  $("forget").onclick = () => { past = []; chosen = []; history.forget(); showPast(); };
  listenToDialogs();
  listenToKeys();
  listenToDrops();
}

function listenToDialogs() {
  $("painting-close").onclick = () => $("painting").close();
  $("erase").onclick = () => {
    brush.erasing = !brush.erasing;
    $("erase").setAttribute("aria-pressed", String(brush.erasing));
  };
  $("undo").onclick = () => brush.undo();
  $("invert").onclick = () => brush.invert();
  $("wipe").onclick = () => brush.wipe();
  $("painting-prompt").oninput = () => brush.onChange();
  $("paint").onclick = paint;
  $("leading").querySelector("form").onsubmit = lead;
  $("leading-close").onclick = () => $("leading").close();
  $("asking").querySelector("form").onsubmit = () => { keepKey($("key").value); tell("The key is kept. Draw again."); };
  $("key-button").onclick = askForKey;
}

function listenToKeys() {
  const letters = { v: "vary", p: "paint", w: "lead", b: "between", r: "reuse", s: "save" };
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && running && !document.querySelector("dialog[open]")) return running.abort();
    const writing = event.target.matches("input:not([type=radio]), textarea, select, canvas");
    if (writing || event.ctrlKey || event.metaKey || event.altKey || $("toolbar").hidden) return;
    const button = $("toolbar").querySelector(`[data-do="${letters[event.key]}"]`);
    if (button && !button.hidden && !document.querySelector("dialog[open]")) button.click();
  });
}

function listenToDrops() {
  let depth = 0;
  const files = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
  const within = (by) => { depth = Math.max(0, depth + by); $("drop").hidden = !depth; };
  addEventListener("dragenter", (event) => { if (files(event)) within(1); });
  addEventListener("dragleave", (event) => { if (files(event)) within(-1); });
  addEventListener("dragover", (event) => event.preventDefault());
  addEventListener("drop", (event) => {
    event.preventDefault();
    depth = 0;
    within(0);
    open(event.dataTransfer.files[0]);
  });
  addEventListener("paste", (event) => { if (event.clipboardData.files.length) open(event.clipboardData.files[0]); });
}

const THEMES = { auto: "as the system", light: "light", dark: "dark" };

function theme(name) {
  if (name === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = name;
  $("theme").setAttribute("aria-label", "Colours: " + THEMES[name]);
  $("theme").title = "Colours: " + THEMES[name];
  try { localStorage.setItem("unclip-theme", name); } catch { /* then for this visit */ }
}

function listenToTheme() {
  let now = "auto";
  try { now = localStorage.getItem("unclip-theme") ?? "auto"; } catch { /* then as the system */ }
  theme(now in THEMES ? now : "auto");
  $("theme").onclick = () => {
    const names = Object.keys(THEMES);
    now = names[(names.indexOf(now) + 1) % names.length];
    theme(now);
  };
}

async function watchQueue() {
  try {
    const { waiting, running: drawn } = await health();
    $("queue").textContent = waiting ? `${waiting} waiting` : drawn ? "drawing" : "";
  } catch {
    $("queue").textContent = "not reachable";
  }
  setTimeout(watchQueue, 4000);
}

async function begin() {
  listenToTheme();
  listen();
  try {
    server = await settings();
  } catch {
    tell("The server cannot be reached.", true);
  }
  $("model").textContent = server.model ?? "";
  for (const style of server.styles) {
    $("style").append(Object.assign(document.createElement("option"), { value: style, textContent: style }));
  }
  $("style-field").hidden = !server.styles.length;
  $("key-button").hidden = !server.key_required;
  segments("counts", "count", [1, 2, 4, 9].filter((count) => count <= server.max_pictures), 1);
  segments("sizes", "size", server.sizes, Math.max(...server.sizes));
  $("guidance").value = server.guidance;
  $("steps").value = server.steps;
  showNumbers();
  for (const idea of IDEAS) {
    const button = Object.assign(document.createElement("button"), { type: "button", textContent: idea });
    button.onclick = () => { $("prompt").value = idea; $("composer").requestSubmit(); };
    $("ideas").append(button);
  }
  past = (await history.recall()).map((kept) => ({ ...kept, tiles: [] }));
  showPast();
  watchQueue();
}

begin();
