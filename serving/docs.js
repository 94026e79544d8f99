"use strict";
const body = document.getElementById("body");
const key = document.getElementById("key");
const out = document.getElementById("out");

function fresh() {
  const event = JSON.parse(body.value);
  if (!("event_id" in event)) return;
  event.event_id = "try-" + crypto.getRandomValues(new Uint32Array(2)).join("-");
  event.event_time = Date.now();
  body.value = JSON.stringify(event, null, 2);
}

async function send() {
  out.textContent = "…";
  const started = performance.now();
  try {
    const answer = await fetch(body.dataset.to, {
      method: "POST",
      headers: { "Content-Type": "application/json", Authorization: "Bearer " + key.value.trim() },
      body: body.value,
    });
    const text = await answer.text();
    const took = (performance.now() - started).toFixed(1);
    let shown = text;
    try {
      shown = JSON.stringify(JSON.parse(text), null, 2);
    } catch (error) {
      // Not JSON: shown as it came.
    }
    out.textContent = "HTTP " + answer.status + " in " + took + " ms\n\n" + shown;
  } catch (error) {
    out.textContent = String(error);
  }
}

document.getElementById("fresh").addEventListener("click", fresh);
document.getElementById("send").addEventListener("click", send);
fresh();
