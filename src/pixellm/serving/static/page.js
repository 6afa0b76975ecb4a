// The page: an image, a dialogue about it, and masks. State lies in one object, `state`.

import { buildLayer, paint, viewSize } from "./masks.js";
import { ServerError, ask, exportAs, readConfig, rememberKey } from "./server.js";

const at = (id) => document.getElementById(id);
const state = {
  config: null,
  image: null, // { bitmap, blob, url, name, width, height }
  turns: [], // { question, text, segments, layers, marked, answer: element }
  shown: null, // the turn whose masks are shown
  only: null, // index of the one mask that is shown alone
  lit: null, // index of the mask under the pointer
  running: null, // AbortController of the answer on its way
};

// ---- image -------------------------------------------------------------------------------

async function openImage(blob, name) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(blob);
  } catch {
    return complain("This browser can\u2019t show that file. Save it as JPEG or PNG and try again.");
  }
  stop();
  at("note").textContent = "";
  const fitted = await fit(bitmap, blob);
  state.image = { ...fitted, name: name || "image", url: await dataUrl(fitted.blob) };
  state.turns = [];
  at("turns").replaceChildren();
  at("again").hidden = true;
  show(null);
  at("stage").dataset.state = "filled";
  const [width, height] = viewSize(fitted.bitmap.width, fitted.bitmap.height);
  Object.assign(at("canvas"), { width, height });
  repaint();
  hideError();
}

// An image that the server takes: smaller where it is too large, PNG or JPEG where it is neither.
async function fit(bitmap, blob) {
  const { max_pixels, max_bytes } = state.config;
  const known = ["image/jpeg", "image/png", "image/webp", "image/gif", "image/bmp"];
  let scale = Math.min(1, Math.sqrt(max_pixels / (bitmap.width * bitmap.height)));
  if (blob.size > max_bytes) scale = Math.min(scale, 2048 / Math.max(bitmap.width, bitmap.height));
  if (scale === 1 && known.includes(blob.type) && blob.size <= max_bytes) return { bitmap, blob };
  const canvas = document.createElement("canvas");
  canvas.width = Math.floor(bitmap.width * scale);
  canvas.height = Math.floor(bitmap.height * scale);
  const context = canvas.getContext("2d");
  context.fillStyle = "#ffffff";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  if (scale < 1) {
    at("note").textContent = `The image was made smaller, to ${canvas.width} \u00d7 ${canvas.height}.`;
  }
  const smaller = await new Promise((done) => canvas.toBlob(done, "image/jpeg", 0.92));
  return { bitmap: await createImageBitmap(canvas), blob: smaller };
}

function dataUrl(blob) {
  return new Promise((done) => {
    const reader = new FileReader();
    reader.onload = () => done(reader.result);
    reader.readAsDataURL(blob);
  });
}

async function openExample(example) {
  const answer = await fetch(example.url);
  await openImage(await answer.blob(), example.name);
  at("question").value = example.question;
  at("question").focus();
}

// ---- masks -------------------------------------------------------------------------------

function show(turn) {
  state.turns.forEach((one) => one.answer.classList.toggle("shown", one === turn));
  if (state.shown !== turn) state.only = null;
  state.shown = turn;
  state.lit = null;
  refreshPhrases();
  const some = Boolean(turn && turn.segments.length);
  at("controls").disabled = !some;
  at("downloads").disabled = !some || Boolean(state.running);
  repaint();
}

function light(turn, index) {
  if (turn && turn !== state.shown && turn.segments.length) show(turn);
  if (state.lit === index) return;
  state.lit = index;
  refreshPhrases();
  repaint();
}

function isolate(turn, index) {
  if (turn !== state.shown) show(turn);
  state.only = state.only === index ? null : index;
  refreshPhrases();
  repaint();
  const label = turn.segments.find((one) => one.index === index).label;
  announce(state.only === null ? "All masks are shown." : `Only the mask of ${label} is shown.`);
}

function refreshPhrases() {
  at("show-all").hidden = state.only === null;
  for (const turn of state.turns) {
    for (const button of turn.answer.querySelectorAll("button.phrase")) {
      const index = Number(button.dataset.index);
      const here = turn === state.shown;
      button.classList.toggle("lit", here && state.lit === index);
      button.setAttribute("aria-pressed", String(here && state.only === index));
    }
  }
}

function choice() {
  return {
    opacity: at("opacity").value / 100,
    outlines: at("outlines").checked,
    labels: at("labels").checked,
    only: state.only,
    lit: state.lit,
  };
}

let planned = false;
function repaint() {
  if (planned || !state.image) return;
  planned = true;
  requestAnimationFrame(() => {
    planned = false;
    const canvas = at("canvas");
    const turn = state.shown;
    paint(canvas.getContext("2d"), state.image.bitmap, turn ? turn.segments : [],
      turn ? turn.layers : {}, choice());
    const names = turn ? turn.segments.map((one) => one.label).join(", ") : "";
    canvas.setAttribute("aria-label", names
      ? `${state.image.name}, with masks of: ${names}` : `${state.image.name}, no masks`);
    canvas.dataset.masks = turn ? turn.segments.length : 0;
  });
}

function maskAt(event) {
  const turn = state.shown;
  if (!turn) return null;
  const canvas = at("canvas");
  const box = canvas.getBoundingClientRect();
  const x = Math.floor(((event.clientX - box.left) / box.width) * canvas.width);
  const y = Math.floor(((event.clientY - box.top) / box.height) * canvas.height);
  const here = turn.segments.filter((one) => turn.layers[one.index].pixels[y * canvas.width + x]
    && (state.only === null || state.only === one.index));
  here.sort((one, other) => one.area - other.area); // the smallest lies on top
  return here.length ? here[0].index : null;
}

// ---- dialogue ----------------------------------------------------------------------------

async function askQuestion(question) {
  if (!state.image) return complain("Choose an image first, or take one of the examples.");
  if (!question.trim()) return complain("Type a question about the image.");
  hideError();
  const turn = addTurn(question);
  state.running = new AbortController();
  setRunning(true);
  show(turn);
  let problem = null;
  try {
    await ask(state.config.model, messages(turn), state.running.signal, (piece) => grow(turn, piece));
  } catch (error) {
    problem = error;
  }
  finish(turn, question, problem);
}

function addTurn(question) {
  const item = document.createElement("li");
  const asked = document.createElement("p");
  asked.className = "asked";
  asked.textContent = question;
  const answer = document.createElement("p");
  answer.className = "answered running";
  item.append(asked, answer);
  at("turns").append(item);
  const turn = { question, text: "", segments: [], layers: {}, marked: null, answer, item };
  state.turns.push(turn);
  item.scrollIntoView({ block: "nearest" });
  return turn;
}

function messages(turn) {
  const list = [];
  for (const one of state.turns) {
    const text = { type: "text", text: one.question };
    const image = { type: "image_url", image_url: { url: state.image.url } };
    list.push({ role: "user", content: list.length ? [text] : [text, image] });
    if (one === turn) return list;
    list.push({ role: "assistant", content: one.text, marked_content: one.marked });
  }
  return list;
}

function grow(turn, piece) {
  if (piece.text) turn.text += piece.text;
  for (const segment of piece.segments ?? []) {
    turn.segments.push(segment);
    turn.layers[segment.index] = buildLayer(segment, at("canvas").width, at("canvas").height);
  }
  if (piece.end) {
    turn.marked = piece.end.marked_content;
    const notes = [];
    if (piece.end.withheld) {
      notes.push(piece.end.withheld === 1 ? "One mask was too unsure to be shown."
        : `${piece.end.withheld} masks were too unsure to be shown.`);
    }
    if (piece.end.reason === "length") notes.push("The answer was cut at the longest that is allowed.");
    const { below, note } = state.config.unfamiliar;
    if (piece.end.familiarity != null && piece.end.familiarity < below) notes.push(note);
    if (notes.length) turn.item.append(aside(notes.join(" ")));
  }
  writeAnswer(turn);
  if (piece.segments && turn === state.shown) show(turn);
}

function aside(text) {
  const note = document.createElement("p");
  note.className = "aside";
  note.textContent = text;
  return note;
}

// The text with a button for each phrase that has a mask. Spans count characters, not UTF-16.
function writeAnswer(turn) {
  const letters = Array.from(turn.text);
  const pieces = [];
  let done = 0;
  for (const segment of [...turn.segments].sort((one, other) => one.span[0] - other.span[0])) {
    const [start, end] = segment.span;
    if (start < done || end <= start) continue;
    pieces.push(letters.slice(done, start).join(""), phrase(turn, segment, letters.slice(start, end).join("")));
    done = end;
  }
  turn.answer.replaceChildren(...pieces, letters.slice(done).join(""));
}

function phrase(turn, segment, text) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "phrase";
  button.dataset.index = segment.index;
  button.textContent = text;
  button.title = `mask ${segment.index + 1}, ${Math.round(segment.score * 100)} % sure`;
  button.style.setProperty("--color", segment.color);
  button.setAttribute("aria-pressed", "false");
  for (const name of ["mouseenter", "focus"]) button.addEventListener(name, () => light(turn, segment.index));
  for (const name of ["mouseleave", "blur"]) button.addEventListener(name, () => light(null, null));
  button.addEventListener("click", () => isolate(turn, segment.index));
  return button;
}

function finish(turn, question, problem) {
  state.running = null;
  setRunning(false);
  turn.answer.classList.remove("running");
  if (problem && problem.name === "AbortError") turn.item.append(aside("Stopped."));
  if (problem || turn.marked === null) drop(turn, question, problem);
  at("again").hidden = !state.turns.length;
  if (!problem) {
    at("question").value = "";
    const count = turn.segments.length;
    announce(`Answer: ${turn.text} ${count === 1 ? "One mask." : `${count} masks.`}`);
  }
  if (state.turns.includes(turn)) show(turn);
  if (document.activeElement === document.body) at("question").focus();
}

// A turn without a whole answer is no part of the dialogue; its question can be asked again.
function drop(turn, question, problem) {
  state.turns = state.turns.filter((one) => one !== turn);
  at("question").value = question;
  if (!turn.text) turn.item.remove();
  show(state.turns.at(-1) ?? null);
  if (!problem || problem.name === "AbortError") return;
  if (problem.status === 401) return at("key-dialog").showModal();
  complain(problem instanceof ServerError ? problem.message : "The answer broke off. Try again.");
}

function stop() {
  if (state.running) state.running.abort();
}

function setRunning(is) {
  at("ask").disabled = is;
  at("stop").hidden = !is;
  at("turns").setAttribute("aria-busy", String(is));
}

function newDialogue() {
  stop();
  state.turns = [];
  at("turns").replaceChildren();
  at("again").hidden = true;
  show(null);
  at("question").focus();
}

// ---- downloads ---------------------------------------------------------------------------

const ENDINGS = { overlay: "_pixellm.png", masks: "_masks.zip", coco: "_coco.json", labelme: ".json" };

async function download(format) {
  const turn = state.shown;
  const stem = state.image.name.replace(/\.[^.]*$/, "");
  try {
    const blob = format === "overlay" ? await overlay(turn)
      : await exportAs(format, state.image.blob, state.image.name, turn.segments);
    const link = document.createElement("a");
    link.href = URL.createObjectURL(blob);
    link.download = stem + ENDINGS[format];
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
    announce(`${link.download} was downloaded.`);
  } catch (error) {
    complain(error.message);
  }
}

// As it is shown, at the image's own size.
function overlay(turn) {
  const canvas = document.createElement("canvas");
  canvas.width = state.image.bitmap.width;
  canvas.height = state.image.bitmap.height;
  const layers = {};
  for (const one of turn.segments) layers[one.index] = buildLayer(one, canvas.width, canvas.height);
  paint(canvas.getContext("2d"), state.image.bitmap, turn.segments, layers, { ...choice(), lit: null });
  return new Promise((done) => canvas.toBlob(done, "image/png"));
}

// ---- camera ------------------------------------------------------------------------------

async function openCamera() {
  if (!navigator.mediaDevices?.getUserMedia) return at("capture").click(); // no https: the phone's own
  try {
    at("video").srcObject = await navigator.mediaDevices.getUserMedia({
      video: { facingMode: "environment" },
    });
  } catch {
    return complain("There is no camera, or it may not be used here. Choose an image instead.");
  }
  at("camera-dialog").showModal();
}

function closeCamera() {
  for (const track of at("video").srcObject?.getTracks() ?? []) track.stop();
  at("video").srcObject = null;
  if (at("camera-dialog").open) at("camera-dialog").close();
}

async function shoot() {
  const video = at("video");
  const canvas = document.createElement("canvas");
  canvas.width = video.videoWidth;
  canvas.height = video.videoHeight;
  canvas.getContext("2d").drawImage(video, 0, 0);
  const blob = await new Promise((done) => canvas.toBlob(done, "image/jpeg", 0.95));
  closeCamera();
  await openImage(blob, "camera.jpg");
  at("question").focus();
}

// ---- words -------------------------------------------------------------------------------

function complain(sentence) {
  at("error-text").textContent = sentence;
  at("error").hidden = false;
}

function hideError() {
  at("error").hidden = true;
  at("error-text").textContent = "";
}

function announce(sentence) {
  at("status").textContent = sentence;
}

// ---- start -------------------------------------------------------------------------------

function listen() {
  const on = (id, name, act) => at(id).addEventListener(name, act);
  on("choose", "click", () => at("file").click());
  on("camera", "click", openCamera);
  for (const id of ["file", "capture"]) {
    on(id, "change", (event) => {
      const [file] = event.target.files;
      if (file) openImage(file, file.name);
      event.target.value = "";
    });
  }
  on("shoot", "click", shoot);
  on("camera-close", "click", closeCamera);
  on("camera-dialog", "close", closeCamera);
  on("error-close", "click", hideError);
  on("stop", "click", stop);
  on("again", "click", newDialogue);
  on("show-all", "click", () => { state.only = null; refreshPhrases(); repaint(); });
  for (const id of ["opacity", "outlines", "labels"]) on(id, "input", repaint);
  on("canvas", "mousemove", (event) => light(state.shown, maskAt(event)));
  on("canvas", "mouseleave", () => light(null, null));
  on("canvas", "click", (event) => {
    const index = maskAt(event);
    if (index !== null) isolate(state.shown, index);
  });
  for (const button of document.querySelectorAll("[data-format]")) {
    button.addEventListener("click", () => download(button.dataset.format));
  }
  on("form", "submit", (event) => {
    event.preventDefault();
    if (!state.running) askQuestion(at("question").value);
  });
  on("question", "keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    at("form").requestSubmit();
  });
  on("key-form", "submit", () => {
    rememberKey(at("key").value.trim());
    at("question").focus();
  });
  listenForFiles();
}

function listenForFiles() {
  const image = (list) => Array.from(list).find((one) => one.type.startsWith("image/"));
  document.addEventListener("paste", (event) => {
    const file = image(event.clipboardData.files);
    if (!file) return;
    event.preventDefault();
    openImage(file, file.name);
  });
  for (const name of ["dragenter", "dragover"]) {
    document.addEventListener(name, (event) => {
      event.preventDefault();
      at("stage").classList.add("over");
    });
  }
  for (const name of ["dragleave", "drop", "dragend"]) {
    document.addEventListener(name, () => at("stage").classList.remove("over"));
  }
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    const file = image(event.dataTransfer.files);
    if (file) openImage(file, file.name);
    else complain("That is no image. Drop a JPEG or PNG.");
  });
}

function showConfig() {
  const { model, about, examples } = state.config;
  at("model").textContent = `Model: ${model}.`;
  for (const sentence of about) {
    const item = document.createElement("li");
    item.textContent = sentence;
    at("about-list").append(item);
  }
  for (const example of examples) {
    const button = document.createElement("button");
    button.type = "button";
    const photo = document.createElement("img");
    photo.src = example.url;
    photo.alt = example.alt;
    const words = document.createElement("span");
    words.textContent = example.question;
    button.append(photo, words);
    button.addEventListener("click", () => openExample(example));
    const item = document.createElement("li");
    item.append(button);
    at("examples").append(item);
  }
}

async function start() {
  listen();
  try {
    state.config = await readConfig();
    showConfig();
  } catch (error) {
    complain(error.message);
  }
}

start();
