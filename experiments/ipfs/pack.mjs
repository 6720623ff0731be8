// Packs every file of a folder as ipfs-car's command does with --no-wrap: node pack.mjs FOLDER
import { openAsBlob, readdirSync } from 'node:fs'
import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { CAREncoderStream, createFileEncoderStream } from 'ipfs-car'

const folder = process.argv[2]
for (const name of readdirSync(folder).filter((each) => each.endsWith('.bin'))) {
  const blocks = []
  await createFileEncoderStream(await openAsBlob(join(folder, name))).pipeTo(
    new WritableStream({ write: (block) => void blocks.push(block) }),
  )
  const chunks = []
  await new ReadableStream({
    start(controller) {
      for (const block of blocks) controller.enqueue(block)
      controller.close()
    },
  })
    .pipeThrough(new CAREncoderStream([blocks.at(-1).cid]))
    .pipeTo(new WritableStream({ write: (chunk) => void chunks.push(chunk) }))
  await writeFile(join(folder, name.replace('.bin', '.car')), Buffer.concat(chunks))
}
