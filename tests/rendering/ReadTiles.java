// What Bio-Formats sees in pictures: java -cp bioformats_package.jar ReadTiles.java < REQUESTS
// A request is a line: "open PATH", or "pixel RESOLUTION X Y" of the picture opened last. Answers have tabs between.

import java.io.*;
import java.nio.*;
import java.nio.charset.StandardCharsets;
import loci.common.services.ServiceFactory;
import loci.formats.*;
import loci.formats.meta.IMetadata;
import loci.formats.services.OMEXMLService;
import ome.units.UNITS;
import ome.xml.model.primitives.Color;

public class ReadTiles {
    static final int TILE = 256;
    static final PrintStream out = new PrintStream(System.out, true, StandardCharsets.UTF_8);

    public static void main(String[] none) throws Exception {
        loci.common.DebugTools.setRootLevel("ERROR");
        BufferedReader requests = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        ImageReader reader = null;
        byte[][] planes = null;
        String held = null;
        for (String line; (line = requests.readLine()) != null; ) {
            String[] words = line.split(" ", 2);
            if (words[0].equals("open")) {
                if (reader != null) reader.close();
                reader = open(words[1]);
                held = null;
                continue;
            }
            String[] place = words[1].split(" ");
            int resolution = Integer.parseInt(place[0]), x = Integer.parseInt(place[1]), y = Integer.parseInt(place[2]);
            if (resolution >= reader.getResolutionCount()) continue;
            reader.setResolution(resolution);
            int left = x / TILE * TILE, top = y / TILE * TILE;
            int width = Math.min(TILE, reader.getSizeX() - left), height = Math.min(TILE, reader.getSizeY() - top);
            String tile = resolution + " " + left + " " + top;
            if (!tile.equals(held)) {
                planes = new byte[reader.getImageCount()][];
                for (int plane = 0; plane < planes.length; plane++)
                    planes[plane] = reader.openBytes(plane, left, top, width, height);
                held = tile;
            }
            StringBuilder answer = new StringBuilder("pixel\t" + place[0] + "\t" + x + "\t" + y);
            for (byte[] plane : planes) append(answer, reader, plane, (y - top) * width + x - left, width * height);
            out.println(answer);
        }
        if (reader != null) reader.close();
    }

    static ImageReader open(String path) throws Exception {
        IMetadata metadata = new ServiceFactory().getInstance(OMEXMLService.class).createOMEXMLMetadata();
        ImageReader reader = new ImageReader();
        reader.setMetadataStore(metadata);
        reader.setFlattenedResolutions(false);
        reader.setId(path);
        out.println("picture\t" + reader.getReader().getClass().getSimpleName() + "\t" + reader.getSeriesCount() + "\t"
            + FormatTools.getPixelTypeString(reader.getPixelType())
            + "\t" + metadata.getPixelsPhysicalSizeX(0).value(UNITS.MICROMETER)
            + "\t" + metadata.getPixelsPhysicalSizeY(0).value(UNITS.MICROMETER));
        for (int resolution = 0; resolution < reader.getResolutionCount(); resolution++) {
            reader.setResolution(resolution);
            out.println("level\t" + reader.getSizeX() + "\t" + reader.getSizeY());
        }
        for (int channel = 0; channel < metadata.getChannelCount(0); channel++) {
            Color color = metadata.getChannelColor(0, channel);
            out.println("channel\t" + (color == null ? "" : color.getValue()) + "\t" + metadata.getChannelName(0, channel));
        }
        return reader;
    }

    static void append(StringBuilder answer, ImageReader reader, byte[] plane, int index, int length) {
        int samples = reader.getRGBChannelCount(), bytes = FormatTools.getBytesPerPixel(reader.getPixelType());
        ByteBuffer buffer = ByteBuffer.wrap(plane);
        buffer.order(reader.isLittleEndian() ? ByteOrder.LITTLE_ENDIAN : ByteOrder.BIG_ENDIAN);
        for (int sample = 0; sample < samples; sample++) {
            int at = bytes * (reader.isInterleaved() ? index * samples + sample : sample * length + index);
            answer.append('\t').append(bytes == 4 ? buffer.getFloat(at) : buffer.get(at) & 0xFF);
        }
    }
}
