// What was drawn before, kept in this browser: pictures with their words, the newest first.

const MAX_KEPT = 60;

function opened() {
  return new Promise((resolve, reject) => {
    const request = indexedDB.open("unclip", 1);
    request.onupgradeneeded = () => request.result.createObjectStore("pictures", { keyPath: "id" });
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

async function work(mode, act) {
  try {
    const base = await opened();
    const change = base.transaction("pictures", mode);
    const request = act(change.objectStore("pictures"));
    return await new Promise((resolve, reject) => {
      change.oncomplete = () => { base.close(); resolve(request?.result); };
      change.onerror = () => { base.close(); reject(change.error); };
    });
  } catch {
    return undefined; // a browser that keeps nothing: the history lasts as long as the page
  }
}

export async function recall() {
  const kept = (await work("readonly", (store) => store.getAll())) || [];
  return kept.sort((a, b) => b.id - a.id);
}

export async function remember(pictures) {
  await work("readwrite", (store) => { for (const { id, blob, made } of pictures) store.put({ id, blob, made }); });
  const kept = await recall();
  const old = kept.slice(MAX_KEPT);
  if (old.length) await work("readwrite", (store) => { for (const { id } of old) store.delete(id); });
}

export function forget() { return work("readwrite", (store) => store.clear()); }
