// One row of one view of a cache, read by zarrita.js; prints its bytes in hexadecimal.
// How to run, beside a folder node_modules: node read_row.mjs CACHE ARRAY ROW VIEW
globalThis.Float16Array ??= Uint16Array; // node before 24 has none; only bits are looked at
const zarr = await import("zarrita");
const { default: FileSystemStore } = await import("@zarrita/storage/fs");

const [cache, array, row, view] = process.argv.slice(2);
const root = await zarr.open(zarr.root(new FileSystemStore(cache)), { kind: "group" });
const opened = await zarr.open(root.resolve(array), { kind: "array" });
const { data } = await zarr.get(opened, [Number(row), Number(view), null]);
console.log(Buffer.from(data.buffer, data.byteOffset, data.byteLength).toString("hex"));
