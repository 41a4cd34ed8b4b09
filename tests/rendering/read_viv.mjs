// What viv's loader sees in OME-TIFFs: node read_viv.mjs < JOBS.json, as JSON. A job is a path and, for each level,
// the pixels [[x, y], ...] to read. VIV_MODULES names the folder whose node_modules hold @vivjs/loaders, @xmldom/xmldom.

import fs from 'node:fs';
import http from 'node:http';
import { createRequire } from 'node:module';
import path from 'node:path';
import { pathToFileURL } from 'node:url';

const { resolve } = createRequire(path.join(path.resolve(process.env.VIV_MODULES), 'here.js'));
const load = async (name) => import(pathToFileURL(resolve(name)));
globalThis.DOMParser = (await load('@xmldom/xmldom')).DOMParser;
const { loadOmeTiff } = await load('@vivjs/loaders');

const jobs = JSON.parse(fs.readFileSync(0, 'utf8'));

// viv reads over HTTP, in ranges of bytes.
const server = http.createServer((request, response) => {
  const file = jobs[Number(request.url.slice(1).split('.')[0])].path;
  const size = fs.statSync(file).size;
  const [, first, last] = /bytes=(\d+)-(\d*)/.exec(request.headers.range ?? 'bytes=0-');
  const end = Math.min(last === '' ? Infinity : Number(last), size - 1);
  response.writeHead(206, { 'Content-Range': `bytes ${first}-${end}/${size}`, 'Content-Length': end - first + 1 });
  fs.createReadStream(file, { start: Number(first), end }).pipe(response);
});
await new Promise((ready) => server.listen(0, '127.0.0.1', ready));

async function read(number) {
  const { data, metadata } = await loadOmeTiff(`http://127.0.0.1:${server.address().port}/${number}.ome.tif`);
  const { Channels, PhysicalSizeX, PhysicalSizeXUnit, PhysicalSizeY, PhysicalSizeYUnit, SizeC } = metadata.Pixels;
  const levels = data.map((source) => ({
    width: source.shape[source.labels.indexOf('x')],
    height: source.shape[source.labels.indexOf('y')],
  }));
  const pixels = [];
  for (const [level, source] of data.entries()) {
    const tiles = new Map();
    const asked = jobs[number].pixels[level] ?? [];
    const values = [];
    for (const [x, y] of asked) {
      const [column, row] = [Math.floor(x / source.tileSize), Math.floor(y / source.tileSize)];
      const key = `${column} ${row}`;
      if (!tiles.has(key)) {
        const channels = Array.from({ length: SizeC }, (_, c) => ({ c, z: 0, t: 0 }));
        tiles.set(key, await Promise.all(channels.map((selection) => source.getTile({ x: column, y: row, selection }))));
      }
      const inside = ({ data: tile, width }) => tile[(y - row * source.tileSize) * width + x - column * source.tileSize];
      values.push(tiles.get(key).map(inside));
    }
    pixels.push(values);
  }
  return {
    levels,
    pixels,
    type: data[0].dtype,
    mpp: [PhysicalSizeX, PhysicalSizeY],
    units: [PhysicalSizeXUnit, PhysicalSizeYUnit],
    channels: Channels.map(({ Name, Color }) => ({ name: Name, color: Color })),
  };
}

const seen = [];
for (const number of jobs.keys()) seen.push(await read(number));
process.stdout.write(JSON.stringify(seen), () => process.exit(0));
